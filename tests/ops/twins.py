"""A fast operation beside its slow twin: random inputs, and how far apart the results may be."""

from __future__ import annotations

import torch

BF16_ROUNDING = 2.0**-8  # relative, half a unit in the last of 8 significant bits


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def relative_error(got: torch.Tensor, want: torch.Tensor, floor: float = 0.0) -> float:
    """|got - want| / |want| in fp64, or by `floor` if that is larger; 0 where both are empty or zero."""
    error = float((got.detach().double() - want.detach().double()).norm())
    return error / max(float(want.detach().double().norm()), floor) if error else 0.0


def compare(fast, slow, inputs, *, rtol: float, floor: float = 0.0) -> None:
    """Outputs and the gradients of a random projection of them, as relative norms."""
    got, want = fast(*inputs), slow(*inputs)
    weight = torch.randn_like(want)
    differentiable = [x for x in inputs if x.requires_grad]
    got_grads = torch.autograd.grad((got * weight).sum(), differentiable)
    want_grads = torch.autograd.grad((want * weight).sum(), differentiable)
    for a, b in zip((got, *got_grads), (want, *want_grads), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert relative_error(a, b, floor) <= rtol
