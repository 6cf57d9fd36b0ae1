"""The optimizer's placement for parameters that are sharded by rows (DTensor, `Shard(0)`).

Newton-Schulz wants whole matrices. Those that lie whole on a process (experts)
stay where they are; each of the others is brought together on one process,
taken in turn, by one exchange, orthogonalised there and sent back by another.
So every matrix is worked on once in the whole world, and no process holds more
than its share of them. Compare Moonlight (arXiv 2502.16982), Algorithm 1, which
gathers every matrix on every process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from openk2.parallel.world import World
from openk2.protocols import Placement


def shard_rows(rows: int, size: int) -> list[int]:
    """How many of `rows` each of `size` processes holds: equal parts, the last ones shorter or empty."""
    part = -(-rows // size)
    return [max(min(part, rows - rank * part), 0) for rank in range(size)]


class Sharded:
    """A `Placement` (see `openk2.protocols`) over a world whose parameters are all sharded by rows."""

    def __init__(self, world: World) -> None:
        self.world = world

    def local(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def first_row(self, parameter: Tensor) -> int:
        return sum(self._rows(parameter)[: self.world.rank])

    def total(self, values: Tensor) -> Tensor:
        return self.world.sum(values)

    def through_whole(
        self,
        function: Callable[[Tensor], Tensor],
        parts: Sequence[Tensor],
        parameters: Sequence[Tensor],
        shape: tuple[int, int],
        dtype: torch.dtype,
    ) -> list[Tensor]:
        size = self.world.size
        owner = [turn % size for turn in range(len(parts))]
        mine = [parameter for parameter, rank in zip(parameters, owner, strict=True) if rank == self.world.rank]
        # [receiver][parameter]: elements that go there of each part; [sender][parameter]: that come from there
        away = [[part.numel() for part, to in zip(parts, owner, strict=True) if to == rank] for rank in range(size)]
        home = [[self._elements(parameter)[rank] for parameter in mine] for rank in range(size)]
        going = [part.flatten() for rank in range(size) for part, to in zip(parts, owner, strict=True) if to == rank]
        pieces = self._exchange(going, away, home, parts[0].dtype)
        stacks = [torch.cat([piece[turn] for piece in pieces]).view(-1, *shape) for turn in range(len(mine))]
        results = function(torch.cat(stacks)).split([len(stack) for stack in stacks]) if stacks else ()
        # Back the same way: of each whole result, every process its part.
        split = [result.reshape(-1).split([sizes[turn] for sizes in home]) for turn, result in enumerate(results)]
        back = [shares[rank] for rank in range(size) for shares in split]
        returned = [iter(part) for part in self._exchange(back, home, away, dtype)]
        return [next(returned[rank]).view(part.shape) for part, rank in zip(parts, owner, strict=True)]

    def _exchange(
        self, going: Sequence[Tensor], away: list[list[int]], home: list[list[int]], dtype: torch.dtype
    ) -> list[tuple[Tensor, ...]]:
        """Send flat pieces of sizes `away` [receiver][piece]; what came is of sizes `home` [sender][piece]."""
        sent = torch.cat(list(going)) if going else torch.empty(0, dtype=dtype)
        received = sent.new_empty(sum(map(sum, home)))
        dist.all_to_all_single(received, sent, [sum(sizes) for sizes in home], [sum(sizes) for sizes in away])
        return [part.split(sizes) for part, sizes in zip(received.split([sum(s) for s in home]), home, strict=True)]

    def _rows(self, parameter: Tensor) -> list[int]:
        return shard_rows(parameter.shape[0], self.world.size)

    def _elements(self, parameter: Tensor) -> list[int]:
        """How many elements of it each process holds."""
        a_row = parameter.numel() // parameter.shape[0]
        return [rows * a_row for rows in self._rows(parameter)]

    def is_cut(self, parameter: Tensor, shape: tuple[int, int]) -> bool:
        ends = accumulate(self._elements(parameter))
        return any(end % (shape[0] * shape[1]) for end in ends)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor brought together on every process; any other one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_like(part: Tensor, parameter: Tensor) -> Tensor:
    """An optimizer's state, sharded like its parameter, brought together on every process."""
    if not isinstance(parameter, DTensor) or part.ndim == 0:
        return part
    shaped = DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return shaped.full_tensor()


@torch.no_grad()
def part_like(tensor: Tensor, parameter: Tensor, placement: Placement) -> Tensor:
    """This process's part of a whole tensor shaped like `parameter`."""
    if not isinstance(parameter, DTensor) or tensor.ndim == 0:
        return tensor
    first = placement.first_row(parameter)
    return tensor[first : first + parameter.to_local().shape[0]].clone()
