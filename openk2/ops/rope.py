"""Rotary positions on interleaved pairs, and heads laid out as attention reads them.

What it is: a pair (x0, x1) of a head turned by an angle is the complex number
x0 + i x1 times cos + i sin, so turning is one complex product, its inverse the
product with the conjugate, and neither needs more than one pass over memory.
Queries, keys and values come from their projections position by position and
leave head by head, [B, H, T, d], in that same pass. Computed in fp32 (fp64 for
fp64 inputs) and rounded once.

Shapes: N tokens (B x T), H heads, n nope, r rope, v value. The slow twins are
in the tests. Left out: rotation by halves, which no K2 checkpoint stores.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from openk2.ops.fused import wide_dtype


def _turned(pairs: Tensor, turns: Tensor) -> Tensor:
    """pairs [..., r] times turns complex [..., r / 2] (broadcast), still wide: [..., r]."""
    pairs = pairs.to(wide_dtype(pairs.dtype))
    if any(step % 2 for step in (*pairs.stride()[:-1], pairs.storage_offset())):  # no complex number begins in between
        pairs = pairs.contiguous()
    numbers = torch.view_as_complex(pairs.unflatten(-1, (-1, 2)))
    return torch.view_as_real(numbers * turns.to(numbers.dtype)).flatten(-2)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, turns: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(turns)
        return _turned(x, turns).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _turned(grad, ctx.saved_tensors[0].conj()).to(grad.dtype), None


class _QueryHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor, turns: Tensor, heads: int, nope: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(turns)
        ctx.nope = nope
        by_position = flat.unflatten(-1, (heads, -1))  # [B, T, H, n + r]
        out = flat.new_empty(by_position.transpose(1, 2).shape)
        _copy_turned(by_position, out.transpose(1, 2), turns, nope)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        by_position = grad.transpose(1, 2)
        out = grad.new_empty(by_position.shape)
        _copy_turned(by_position, out, ctx.saved_tensors[0].conj(), ctx.nope)
        return out.flatten(2), None, None, None


def _copy_turned(source: Tensor, target: Tensor, turns: Tensor, nope: int) -> None:
    """[B, T, H, n + r] to the same shape in another layout, the last r turned by `turns` [B, T, r / 2]."""
    target[..., :nope] = source[..., :nope]
    target[..., nope:] = _turned(source[..., nope:], turns.unsqueeze(2))


class _KeyValueHeads(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, unfolded: Tensor, rope: Tensor, heads: int, nope: int
    ) -> tuple[Tensor, Tensor]:
        by_position = unfolded.unflatten(-1, (heads, -1))
        batch, length = by_position.shape[:2]
        key = unfolded.new_empty(batch, heads, length, nope + rope.shape[-1])
        key[..., :nope] = by_position[..., :nope].transpose(1, 2)
        key[..., nope:] = rope.unsqueeze(1)
        ctx.nope = nope
        return key, by_position[..., nope:].transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, grad_key: Tensor, grad_value: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        nope = ctx.nope
        batch, heads, length, value = grad_value.shape
        grad = grad_key.new_empty(batch, length, heads, nope + value)
        grad[..., :nope] = grad_key[..., :nope].transpose(1, 2)
        grad[..., nope:] = grad_value.transpose(1, 2)
        return grad.flatten(2), grad_key[..., nope:].sum(1), None, None


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """The pairs of x [..., r] turned by complex `turns` [..., r / 2], returned in x's dtype."""
    return cast(Tensor, _Rotate.apply(x, turns))


def query_heads(flat: Tensor, turns: Tensor, *, heads: int, nope: int) -> Tensor:
    """Projected queries [B, T, H * (n + r)], turns complex [B, T, r / 2] -> [B, H, T, n + r], its last r turned."""
    return cast(Tensor, _QueryHeads.apply(flat, turns, heads, nope))


def key_value_heads(unfolded: Tensor, rope: Tensor, *, heads: int, nope: int) -> tuple[Tensor, Tensor]:
    """Unfolded latents [B, T, H * (n + v)] and the turned key [B, T, r] that all heads share -> keys [B, H, T, n + r]
    and values [B, H, T, v]."""
    return cast(tuple[Tensor, Tensor], _KeyValueHeads.apply(unfolded, rope, heads, nope))
