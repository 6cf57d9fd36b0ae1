"""The placement of an optimizer that runs in one process: every parameter is whole and here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from openk2.protocols import Result


class Whole:
    """A `Placement` (see `openk2.protocols`) that has nothing to bring together."""

    def local(self, parameter: Tensor) -> Tensor:
        return parameter

    def gradient(self, parameter: Tensor) -> Tensor | None:
        return parameter.grad

    def first_element(self, parameter: Tensor) -> int:
        return 0

    def total(self, values: Tensor) -> Tensor:
        return values

    def is_cut(self, parameter: Tensor, shape: tuple[int, int]) -> bool:
        return False

    def through_whole(
        self,
        function: Callable[[Tensor], Tensor],
        parts: Sequence[Tensor],
        parameters: Sequence[Tensor],
        shape: tuple[int, int],
        dtype: torch.dtype,
    ) -> list[Tensor]:
        raise AssertionError("no parameter is cut")

    def gather(self, part: Tensor, parameter: Tensor) -> Tensor:
        return part

    @torch.no_grad()
    def put(self, tensor: Tensor, parameter: Tensor) -> None:
        parameter.copy_(tensor)

    def update(self, step: Callable[[], Result]) -> Result:
        return step()


WHOLE = Whole()
