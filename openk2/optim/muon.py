"""Muon's maths on stacks of matrices: momentum, Newton-Schulz, scale.

Pure functions of tensors; the optimizer around them is `muonclip`. Every
matrix of a stack [count, rows, columns] is orthogonalised by itself: the
iteration never mixes experts. Source: K2 report (arXiv 2507.20534), Algorithm 1;
Moonlight (arXiv 2502.16982), sections 2.1 and 2.2, which adds Nesterov's look-ahead.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Keller Jordan's quintic: after five steps singular values lie within about 0.7 to 1.2.
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_SMALL, _LARGE = 1e-3, 1e15  # Frobenius norms between which fp32 squares and the epsilon are harmless


def update_scale(rows: int, columns: int, update_rms: float) -> float:
    """Factor that gives an orthogonalised matrix the root mean square of an Adam update (0.2 in K2)."""
    return update_rms * math.sqrt(max(rows, columns))


def newton_schulz(stack: Tensor, steps: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Orthogonalise each matrix of stack [count, rows, columns]: U V^T of its SVD, approximately.

    Works in `dtype` and returns it. Gradients of any finite size are safe; an
    all-zero matrix stays zero.
    """
    norm = torch.linalg.matrix_norm(stack, keepdim=True)
    if bool(((norm < _SMALL) | (norm > _LARGE)).any()):
        # Squares under- or overflow in fp32 there, and the epsilon would count: divide by the largest entry first.
        peak = stack.abs().amax((-2, -1), keepdim=True)
        stack = stack / peak.where(peak > 0, 1.0)
        norm = torch.linalg.matrix_norm(stack, keepdim=True)
    x = (stack / (norm + 1e-7)).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the Gram matrix is formed on the short side
        x = x.transpose(-2, -1).contiguous()
    a, b, c = NS_COEFFICIENTS
    for _ in range(steps):
        gram = torch.bmm(x, x.transpose(-2, -1))
        mixed = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, mixed, x, beta=a)
    return x.transpose(-2, -1) if tall else x


def nesterov_(momentum: Tensor, gradient: Tensor, mu: float) -> Tensor:
    """momentum <- mu momentum + gradient, in place; returns the look-ahead mu momentum + gradient.

    K2's Algorithm 1 has no look-ahead written in it, Moonlight's first footnote has; we take it.
    """
    momentum.mul_(mu).add_(gradient)
    return gradient.add(momentum, alpha=mu)
