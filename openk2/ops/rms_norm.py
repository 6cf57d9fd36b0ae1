"""Root-mean-square normalisation over the last dimension, computed in fp32.

The backward pass is written out: autograd's own keeps and re-reads several
fp32 copies of the activations, which costs more than a projection on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float):  # type: ignore[override]
        wide = x.float() if x.dtype == torch.bfloat16 else x
        inverse = (wide.square().mean(-1, keepdim=True) + eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).to(x.dtype) * weight.to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, weight, inverse = ctx.saved_tensors
        wide = x.float() if x.dtype == torch.bfloat16 else x
        normed = wide * inverse
        grad_wide = grad.to(wide.dtype)
        grad_weight = (grad_wide * normed).flatten(0, -2).sum(0).to(weight.dtype)
        grad_normed = grad_wide * weight.to(wide.dtype)
        projection = (grad_normed * normed).mean(-1, keepdim=True)
        grad_x = grad_normed.addcmul_(normed, projection, value=-1).mul_(inverse)
        return grad_x.to(x.dtype), grad_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; x [..., D], weight [D]."""
    return _RMSNorm.apply(x, weight, eps)
