"""The optimizer's placements for parameters that lie on several processes, each with a run of their elements.

Newton-Schulz wants whole matrices. Those that lie whole on a process (experts)
stay where they are; each of the others is brought together on one process,
taken in turn, by one exchange, orthogonalised there and sent back by another.
So every matrix is worked on once in the whole world, and no process holds more
than its share of them. Compare Moonlight (arXiv 2502.16982), Algorithm 1, which
gathers every matrix on every process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from openk2.parallel.world import World
from openk2.protocols import Placement, Result


def shard_rows(rows: int, size: int) -> list[int]:
    """How many of `rows` each of `size` processes holds: equal parts, the last ones shorter or empty."""
    part = -(-rows // size)
    return [max(min(part, rows - rank * part), 0) for rank in range(size)]


class Runs(ABC):
    """What all of them share; a layout says how many elements each process holds, and where they lie here."""

    def __init__(self, world: World) -> None:
        self.world = world

    @abstractmethod
    def elements(self, parameter: Tensor) -> list[int]:
        """How many elements of it each process holds, in the order of ranks."""

    @abstractmethod
    def local(self, parameter: Tensor) -> Tensor: ...

    @abstractmethod
    def gradient(self, parameter: Tensor) -> Tensor | None: ...

    def first_element(self, parameter: Tensor) -> int:
        return sum(self.elements(parameter)[: self.world.rank])

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
        home = [[self.elements(parameter)[rank] for parameter in mine] for rank in range(size)]
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

    def is_cut(self, parameter: Tensor, shape: tuple[int, int]) -> bool:
        ends = accumulate(self.elements(parameter))
        return any(end % (shape[0] * shape[1]) for end in ends)

    def gather(self, part: Tensor, parameter: Tensor) -> Tensor:
        held = self.elements(parameter)
        padded = part.new_zeros(max(held))  # all_gather takes equal sizes
        padded[: part.numel()] = part.flatten()
        parts = [torch.empty_like(padded) for _ in held]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, held, strict=True)]).view(parameter.shape)

    def update(self, step: Callable[[], Result]) -> Result:
        return step()

    @torch.no_grad()
    def put(self, tensor: Tensor, parameter: Tensor) -> None:
        self.local(parameter).copy_(part_like(tensor, parameter, self))


class Sharded(Runs):
    """A `Placement` over a world whose parameters are all sharded by rows (DTensor, `Shard(0)`)."""

    def elements(self, parameter: Tensor) -> list[int]:
        rows = len(parameter)
        return [held * (parameter.numel() // rows) for held in shard_rows(rows, self.world.size)]

    def local(self, parameter: Tensor) -> Tensor:
        return parameter.to_local() if isinstance(parameter, DTensor) else parameter

    def gradient(self, parameter: Tensor) -> Tensor | None:
        return None if parameter.grad is None else self.local(parameter.grad)


class Flattened(Runs):
    """A `Placement` over parameters that follow each other in one flat buffer, cut into equal pieces (ZeRO-1).

    `piece` is this process's, with the gradients in `piece.grad`; the last piece may end with padding. A run begins
    and ends wherever the cuts fall. The model's own parameters stay whole on every process.
    """

    def __init__(self, world: World, parameters: Iterable[Tensor], piece: Tensor) -> None:
        super().__init__(world)
        self.piece = piece
        given = list(parameters)
        begins = accumulate((parameter.numel() for parameter in given[:-1]), initial=0)
        self._begin = dict(zip(given, begins, strict=True))

    def elements(self, parameter: Tensor) -> list[int]:
        begin, size = self._begin[parameter], len(self.piece)
        end, cuts = begin + parameter.numel(), range(0, self.world.size * size, size)
        return [max(min(end, cut + size) - max(begin, cut), 0) for cut in cuts]

    def local(self, parameter: Tensor) -> Tensor:
        return self._run(self.piece.detach(), parameter) if parameter in self._begin else parameter

    def gradient(self, parameter: Tensor) -> Tensor | None:
        return None if self.piece.grad is None else self._run(self.piece.grad, parameter)

    def _run(self, piece: Tensor, parameter: Tensor) -> Tensor:
        first = max(self._begin[parameter] - self.world.rank * len(piece), 0)
        return piece[first : first + self.elements(parameter)[self.world.rank]]

    @torch.no_grad()
    def put(self, tensor: Tensor, parameter: Tensor) -> None:
        super().put(tensor, parameter)
        parameter.copy_(tensor)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor brought together on every process; any other one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, parameter: Tensor, placement: Placement) -> Tensor:
    """This process's part of a whole tensor shaped like `parameter`."""
    if tensor.ndim == 0:
        return tensor
    held = placement.local(parameter)
    if held.numel() == parameter.numel():  # buffers as well, which are nowhere cut
        return tensor.view(held.shape)
    first = placement.first_element(parameter)
    return tensor.flatten()[first : first + held.numel()].view(held.shape).clone()
