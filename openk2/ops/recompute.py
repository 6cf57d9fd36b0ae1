"""Selective recompute: what a cheap function returned is given back after the forward pass and made again when needed.

What it is: inside `with Recompute() as again`, the result of
`again(function, *inputs)` is differentiated as ever, but autograd keeps the
inputs and the function instead of the result. The first consumer that needs
the result in its backward pass makes it again, the last one lets go of it. K2
does this to norms, SwiGLU, latent attention's up-projections and the experts'
down-projections (report, section 2.4); here SwiGLU and the down-projections
need no help, their backward passes are written so (`openk2.ops.experts`, `fused`).

Invariants: gradients have the same bits as without; statistics are taken from
the forward pass alone, for nothing but `function` runs again. `function` must
be deterministic and its weights must not change before the backward pass.
torch.utils.checkpoint would not do: it frees what a function keeps inside, not
what it returns, which here is the larger part. Left out: offloading.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class _Recipe:
    """How to make some tensors again, and the tensors while somebody still needs them."""

    def __init__(self, function: Callable[..., Any], inputs: list[Any]) -> None:
        self.function, self.inputs = function, inputs
        self.needed = 0  # tensors in the graph that stand for one of ours
        self._made: tuple[Tensor, ...] | None = None

    def take(self, index: int) -> Tensor:
        if self._made is None:
            with torch.no_grad():
                self._made = _as_tuple(self.function(*(_unpack(x) for x in self.inputs)))
        made = self._made[index]
        self.needed -= 1
        if self.needed <= 0:
            self._made = None
        return made


class _Part:
    """A view of a tensor that will be made again: what autograd keeps in its place."""

    def __init__(self, recipe: _Recipe, index: int, view: Tensor) -> None:
        recipe.needed += 1
        self.recipe, self.index = recipe, index
        self.layout = (view.size(), view.stride(), view.storage_offset())


def _unpack(packed: Any) -> Any:
    return packed.recipe.take(packed.index).as_strided(*packed.layout) if isinstance(packed, _Part) else packed


def _as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


class Recompute:
    """`enabled` False: `again(function, *inputs)` is `function(*inputs)`, and everything is kept."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        # Address of a result's memory -> the result, while it lives, for memory is used again; and how it is made.
        self._found: dict[int, tuple[weakref.ref[Tensor], _Recipe, int]] = {}
        self._hooks = saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> Recompute:
        if self.enabled:
            self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.enabled:
            self._hooks.__exit__(*error)
            self._found.clear()

    def __call__(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """`function(*inputs)`, a tensor or a tuple of them that share no memory with anything else."""
        result = function(*inputs)
        if self.enabled:
            recipe = _Recipe(function, [self._pack(x) if isinstance(x, Tensor) else x for x in inputs])
            for index, tensor in enumerate(_as_tuple(result)):
                if tensor.numel():  # all empty tensors have the same address, none
                    self._found[tensor.untyped_storage().data_ptr()] = (weakref.ref(tensor), recipe, index)
        return result

    def _pack(self, tensor: Tensor) -> Any:
        result, recipe, index = self._found.get(tensor.untyped_storage().data_ptr(), (None, None, 0))
        if recipe is None or result is None or result() is None:
            return tensor.detach()  # the tensor itself would keep its own graph alive
        return _Part(recipe, index, tensor)


KEEP = Recompute(enabled=False)
