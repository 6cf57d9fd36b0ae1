"""RMSNorm as a module; the maths is in `openk2.ops.fused`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openk2.ops.fused import rms_norm


class RMSNorm(nn.Module):
    """x [..., dim] -> x / rms(x) * weight, in fp32, returned in x's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)
