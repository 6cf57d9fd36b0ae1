"""Muon's maths on stacks of matrices: momentum, Newton-Schulz, the scale of the update, and decay.

Functions of tensors; the optimizer around them is `muonclip`. Every
matrix of a stack [count, rows, columns] is orthogonalised by itself: the
iteration never mixes experts. `newton_schulz` is the iteration as published and
the slow twin of `orthogonalise`, which forms the Gram matrix less often where
matrices are long. Source: K2 report (arXiv 2507.20534), Algorithm 1; Moonlight
(arXiv 2502.16982), sections 2.1 and 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from openk2.ops.fused import fused, wide

# Keller Jordan's quintic: after five steps singular values lie within about 0.7 to 1.2.
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_SMALL, _LARGE = 1e-3, 1e15  # Frobenius norms between which fp32 squares and the epsilon are harmless
_GRAM_STEPS = 2  # before the Gram matrix is formed anew: its bf16 rounding would else grow with each step
_GRAM_RATIO = 2.0  # of the sides, from which on the Gram iteration takes less time (benchmarks/muon_step.py)


@fused
def scaled_to(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """x * factor (broadcast) in `dtype`."""
    return (x * factor).to(dtype)


@fused
def momentum_(momentum: Tensor, gradient: Tensor, mu: float, nesterov: bool) -> Tensor:
    """momentum <- mu momentum + gradient, in place; returns a copy, or Nesterov's look-ahead mu momentum + gradient."""
    moved = momentum * mu + gradient
    momentum.copy_(moved)
    return moved * mu + gradient if nesterov else moved


@fused
def apply_update_(parameter: Tensor, update: Tensor, step: Tensor, decay: Tensor, cautious: bool) -> Tensor:
    """parameter <- parameter (1 - decay) - step * update, in place; returns the sum of the update's squares.

    `step` and `decay` are tensors of one value. `cautious` decays only where decay and update pull the same way
    (Chen and others, arXiv 2510.12402).
    """
    update = wide(update)
    keep = 1 - decay
    kept = torch.where(update * parameter > 0, parameter * keep, parameter) if cautious else parameter * keep
    parameter.copy_(kept - update * step)
    return update.square().sum()


def update_scale(rows: int, columns: int, update_rms: float) -> float:
    """Factor that gives an orthogonalised matrix the root mean square of an Adam update (0.2 in K2)."""
    return update_rms * math.sqrt(max(rows, columns))


def orthogonalise(stack: Tensor, steps: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Each matrix of stack [count, rows, columns] as U V^T of its SVD, approximately, in `dtype`.

    Gradients of any finite size are safe; an all-zero matrix stays zero.
    """
    long, short = max(stack.shape[-2:]), min(stack.shape[-2:])
    iterate = _gram_iteration if long >= _GRAM_RATIO * short else _iteration
    return _wide_and_normalised(stack, steps, dtype, iterate)


def newton_schulz(stack: Tensor, steps: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The published iteration, with the arguments and the result of `orthogonalise`."""
    return _wide_and_normalised(stack, steps, dtype, _iteration)


def _wide_and_normalised(
    stack: Tensor, steps: int, dtype: torch.dtype, iterate: Callable[[Tensor, int], Tensor]
) -> Tensor:
    norm = torch.linalg.matrix_norm(stack, keepdim=True)
    if bool(((norm < _SMALL) | (norm > _LARGE)).any()):
        # Squares under- or overflow in fp32 there, and the epsilon would count: divide by the largest entry first.
        peak = stack.abs().amax((-2, -1), keepdim=True)
        stack = stack / peak.where(peak > 0, 1.0)
        norm = torch.linalg.matrix_norm(stack, keepdim=True)
    x = scaled_to(stack, 1 / (norm + 1e-7), dtype)
    if x.shape[-2] <= x.shape[-1]:
        return iterate(x, steps)
    return iterate(x.transpose(-2, -1).contiguous(), steps).transpose(-2, -1)  # the Gram matrix is of the short side


def _iteration(x: Tensor, steps: int) -> Tensor:
    """x <- a x + b (x x^T) x + c (x x^T)^2 x, `steps` times."""
    a, b, c = NS_COEFFICIENTS
    for _ in range(steps):
        gram = torch.bmm(x, x.transpose(-2, -1))
        mixed = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, mixed, x, beta=a)
    return x


def _gram_iteration(x: Tensor, steps: int) -> Tensor:
    """The same polynomial on the Gram matrix: x <- p_k(G_k) ... p_1(G_1) x with G_(i+1) = p_i(G_i)^2 G_i.

    All factors are polynomials of x x^T, so they commute; the long side is touched once in a few steps.
    """
    for begin in range(0, steps, _GRAM_STEPS):
        gram = torch.bmm(x, x.transpose(-2, -1))
        factor = total = _factor(gram)
        for _ in range(min(_GRAM_STEPS, steps - begin) - 1):
            gram = torch.bmm(torch.bmm(factor, gram), factor)
            factor = _factor(gram)
            total = torch.bmm(factor, total)
        x = torch.bmm(total, x)
    return x


def _factor(gram: Tensor) -> Tensor:
    """a + b G + c G^2."""
    a, b, c = NS_COEFFICIENTS
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor
