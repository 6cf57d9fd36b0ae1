"""SwiGLU on fused gate-up products, and its gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for gate_up [..., 2F] with the gate first: [..., F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def swiglu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """Gradient of `swiglu` for grad [..., F]: [..., 2F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    out = torch.empty_like(gate_up)
    grad_gate, grad_up = out.chunk(2, dim=-1)
    torch.mul(grad, F.silu(gate), out=grad_up)
    torch.mul(torch.ops.aten.silu_backward(grad, gate), up, out=grad_gate)
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up: Tensor):  # type: ignore[override]
        ctx.save_for_backward(gate_up)
        return swiglu(gate_up)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return swiglu_backward(grad, *ctx.saved_tensors)


def swiglu_mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """A dense SwiGLU: x [N, D], gate_up [2F, D], down [D, F]; returns [N, D]."""
    return F.linear(_SwiGLU.apply(F.linear(x, gate_up)), down)
