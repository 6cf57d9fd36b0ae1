"""Norm and activation against their slow twins: forward, gradients, bf16's rounding, extreme gates."""

from __future__ import annotations

import torch
from twins import BF16_ROUNDING, compare, draw, relative_error

from openk2.ops.fused import rms_norm, swiglu_backward, swiglu_forward, swiglu_mlp


def plain_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def test_rms_norm_gradcheck_and_twin():
    inputs = (draw(6, 5), draw(5))
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-3), inputs)
    compare(lambda x, w: rms_norm(x, w, 1e-3), lambda x, w: plain_rms_norm(x, w, 1e-3), inputs, rtol=1e-13)
    single = (draw(7, 64, dtype=torch.float32), draw(64, dtype=torch.float32))
    compare(lambda x, w: rms_norm(x, w, 1e-6), lambda x, w: plain_rms_norm(x, w, 1e-6), single, rtol=1e-6)


def test_rms_norm_in_bf16_computes_in_fp32():
    x = (torch.randn(50, 512) * 30).bfloat16().requires_grad_()
    weight = torch.rand(512).requires_grad_()  # an fp32 master weight
    wide, wide_weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    out, want = rms_norm(x, weight, 1e-6), plain_rms_norm(wide, wide_weight, 1e-6)
    assert out.dtype == torch.bfloat16
    assert bool(((out.double() - want).abs() <= 1.001 * BF16_ROUNDING * want.abs() + 1e-30).all())
    grad = torch.randn_like(want).bfloat16()
    got = torch.autograd.grad(out, (x, weight), grad)
    expected = torch.autograd.grad(want, (wide, wide_weight), grad.double())
    assert got[0].dtype == torch.bfloat16 and got[1].dtype == torch.float32
    assert relative_error(got[0], expected[0]) <= BF16_ROUNDING
    assert relative_error(got[1], expected[1]) <= 1e-5


def test_swiglu_and_mlp():
    x, gate_up, down = draw(5, 3), draw(8, 3), draw(3, 4)
    assert torch.autograd.gradcheck(swiglu_mlp, (x, gate_up, down))

    def plain(x, gate_up, down):
        gate, up = (x @ gate_up.t()).split(4, dim=-1)
        return (gate * gate.sigmoid() * up) @ down.t()

    compare(swiglu_mlp, plain, (x, gate_up, down), rtol=1e-13)


def test_swiglu_of_extreme_gates_is_finite():
    """Where exp(-gate) overflows the value and both gradients are those of the limit."""
    gate_up = torch.tensor([[-200.0, 200.0, 0.0, 3.0, 5.0, 7.0]])
    assert swiglu_forward(gate_up).tolist() == [[0.0, 1000.0, 0.0]]
    assert swiglu_backward(torch.ones(1, 3), gate_up)[0].tolist() == [[0.0, 5.0, 3.5, 0.0, 200.0, 0.0]]
