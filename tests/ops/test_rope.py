"""Rotation as a complex product, and heads laid out for attention, against plain torch."""

from __future__ import annotations

import torch

from openk2.ops.rope import key_value_heads, query_heads, rotate

HEADS, NOPE, ROPE, VALUE = 3, 5, 4, 6


def turned(pairs: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Each pair (a, b) by its angle, written out."""
    a, b = pairs[..., 0::2], pairs[..., 1::2]
    return torch.stack((a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), -1).flatten(-2)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))
    ).requires_grad_()


def angles(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 7


def assert_same(got, want, inputs) -> None:
    """Results and gradients of their squares' sum."""
    got, want = (x if isinstance(x, tuple) else (x,) for x in (got, want))
    grads = [torch.autograd.grad(sum(x.square().sum() for x in xs), inputs) for xs in (got, want)]
    for a, b in zip((*got, *grads[0]), (*want, *grads[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_rotation_is_a_complex_product():
    x, by = draw(5, 6), angles(5, 3)
    turns = torch.polar(torch.ones_like(by), by)
    assert_same(rotate(x, turns), turned(x, by), (x,))
    assert torch.autograd.gradcheck(lambda x: rotate(x, turns), (x,))
    assert rotate(x.bfloat16(), turns.to(torch.complex64)).dtype == torch.bfloat16


def test_queries_go_head_by_head_with_their_last_part_turned():
    flat, by = draw(2, 7, HEADS * (NOPE + ROPE)), angles(2, 7, ROPE // 2)
    turns = torch.polar(torch.ones_like(by), by)
    heads = flat.view(2, 7, HEADS, -1).transpose(1, 2)
    want = torch.cat((heads[..., :NOPE], turned(heads[..., NOPE:], by[:, None])), -1)
    assert_same(query_heads(flat, turns, heads=HEADS, nope=NOPE), want, (flat,))


def test_keys_share_the_rotary_part_and_values_stand_apart():
    unfolded, rope = draw(2, 7, HEADS * (NOPE + VALUE)), draw(2, 7, ROPE)
    heads = unfolded.view(2, 7, HEADS, -1).transpose(1, 2)
    want = torch.cat((heads[..., :NOPE], rope[:, None].expand(-1, HEADS, -1, -1)), -1), heads[..., NOPE:]
    assert_same(key_value_heads(unfolded, rope, heads=HEADS, nope=NOPE), want, (unfolded, rope))


def test_a_rotation_in_bf16_is_rounded_once():
    x, by = draw(50, 64), angles(50, 32)
    turns = torch.polar(torch.ones_like(by), by).to(torch.complex64)
    got, want = rotate(x.bfloat16(), turns), turned(x.bfloat16().double(), by)
    assert bool(((got - want).abs() <= 1.01 * 2.0**-8 * want.abs() + 1e-5).all())
