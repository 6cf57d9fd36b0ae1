"""The processes of one run: who is there, and what they agree on.

One process without torchrun is a world of one, in which every sum is what it
was. Invariants: every process calls the same collectives in the same order;
what is refused by the first process ends all of them, the others without a word.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

Value = TypeVar("Value")


class World:
    """`rank` of `size` processes on a mesh of one axis, "data"."""

    def __init__(self, rank: int = 0, size: int = 1, mesh: DeviceMesh | None = None) -> None:
        self.rank, self.size, self.mesh = rank, size, mesh

    @property
    def first(self) -> bool:
        """Whether this process speaks, writes and keeps the books."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Added over the processes; `values` itself stays."""
        return values if self.size == 1 else self._from_all(values).sum(0)

    def max(self, values: Tensor) -> Tensor:
        """The largest over the processes; nan where one of them has nan."""
        return values if self.size == 1 else self._from_all(values).amax(0)

    def any(self, value: bool) -> bool:
        """Whether it holds on one process at least."""
        return bool(self.max(torch.tensor(float(value))))

    def agree(self, decide: Callable[[], Value]) -> Value:
        """What the first process decides, on all of them. Its ValueErrors and OSErrors end the others quietly."""
        if self.size == 1:
            return decide()
        said: list[object] = [None, False]
        try:
            if self.first:
                said[0] = decide()
        except BaseException:
            said[1] = True
            raise
        finally:
            dist.broadcast_object_list(said, src=0)
        if said[1]:
            raise SystemExit(2)
        return said[0]  # type: ignore[return-value]

    def one_by_one(self, work: Callable[[], Value]) -> Value:
        """`work` on the first process, then on the others, which are to find it done."""
        result: list[Value] = []
        self.agree(lambda: result.append(work()))
        return result[0] if self.first else work()

    def _from_all(self, values: Tensor) -> Tensor:
        """Every process's values, in the order of ranks: [size, ...]. A few numbers, never weights."""
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts)


ALONE = World()


def join_world(expected: int) -> World:
    """The world that torchrun has made, or a world of one.

    ValueError where it has another number of processes than `expected`, said with the command that fits.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size != expected:
        command = f"torchrun --nproc-per-node {expected} -m openk2 ..." if expected > 1 else "no torchrun"
        raise ValueError(
            f"parallel.dp: saw {expected} with {size} process{'es' if size > 1 else ''} running, expected as many; "
            f"start it with {command}, or set --parallel.dp {size}"
        )
    if size == 1:
        return ALONE
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("data",))  # as all of training so far
    return World(dist.get_rank(), size, mesh)


def leave_world() -> None:
    """End this process well, if it belongs to a world of several; a world of one goes on.

    Waits for the others, whose work may still need us. Ends without the interpreter's own shutdown, in which gloo's
    threads now and then abort the process (seen in one of ten runs of two processes on a busy machine, torch 2.13).
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
