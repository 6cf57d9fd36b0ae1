"""Causal attention within documents, tiled over query blocks, with each query's largest score.

What it is: the training and prefill attention of the CPU. Queries are taken
a block at a time against the keys up to the block's end, so that half of the
score matrix is never computed and none of it is kept: the backward pass makes
the probabilities again. Scores accumulate in fp32 inside the product and are
rounded to the inputs' dtype.

Invariants: token i sees token j when `starts[i] <= j <= i`. Peaks are over
visible scores, scale included: in fp32 they are exact, in bf16 they may be off
by the final rounding (2^-8 relative), which is why QK-Clip asks
`exact_peak_scores` wherever the rounded value comes near its threshold.

The slow twin is `reference_attention`. Left out: dropout and attention sinks.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from openk2.ops.fused import masked_softmax, softmax_backward

QUERY_BLOCK = 256  # a block's scores stay within the last-level cache at small batches


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        batch, heads, length, _ = q.shape
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        out = torch.empty(batch * heads, length, v.shape[-1], dtype=q.dtype, device=q.device)
        peaks = []
        for first in range(0, length, QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, length)
            weights, peak = _weights(q, k, starts, scale, first, last)
            peaks.append(peak)
            out[:, first:last] = torch.bmm(weights, v[:, :last])
        ctx.save_for_backward(q, k, v, starts)
        ctx.scale = scale
        peak_scores = torch.cat(peaks, dim=-1)
        ctx.mark_non_differentiable(peak_scores)
        return out.unflatten(0, (batch, heads)), peak_scores

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, _grad_peaks: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, starts = ctx.saved_tensors
        batch, heads = grad_out.shape[:2]
        grad_out = grad_out.flatten(0, 1)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for first in range(0, q.shape[1], QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, q.shape[1])
            weights, _ = _weights(q, k, starts, ctx.scale, first, last)
            grad_block = grad_out[:, first:last]
            grad_v[:, :last] += torch.bmm(weights.transpose(1, 2), grad_block)
            grad_scores = softmax_backward(torch.bmm(grad_block, v[:, :last].transpose(1, 2)), weights, ctx.scale)
            grad_q[:, first:last] = torch.bmm(grad_scores, k[:, :last])
            grad_k[:, :last] += torch.bmm(grad_scores.transpose(1, 2), q[:, first:last])
        shape = (batch, heads)
        return grad_q.unflatten(0, shape), grad_k.unflatten(0, shape), grad_v.unflatten(0, shape), None, None


def _weights(q: Tensor, k: Tensor, starts: Tensor, scale: float, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Attention weights [B * H, queries, keys] of one query block and each row's peak score [B, H, queries]."""
    scores = torch.bmm(q[:, first:last], k[:, :last].transpose(1, 2)).unflatten(0, (starts.shape[0], -1))
    weights, peak = masked_softmax(scores, starts[:, first:last], first, scale)
    return weights.flatten(0, 1), peak


def document_attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention within documents.

    q, k [B, H, T, qk_dim], v [B, H, T, v_dim]; starts [B, T] is, for each
    position, the first position of its document. Returns the output
    [B, H, T, v_dim] and each query's largest visible score [B, H, T], fp32 (fp64 for fp64 inputs).
    """
    return cast(tuple[Tensor, Tensor], _TiledAttention.apply(q, k, v, starts.to(torch.int32), scale))


@torch.no_grad()
def exact_peak_scores(q: Tensor, k: Tensor, starts: Tensor, scale: float) -> Tensor:
    """Each query's largest visible score from fp32 products, fp32 [B, H, T], tile by tile."""
    q, k = q.float().flatten(0, 1), k.float().flatten(0, 1)
    peaks = []
    for first in range(0, q.shape[1], QUERY_BLOCK):
        _, peak = _weights(q, k, starts, scale, first, min(first + QUERY_BLOCK, q.shape[1]))
        peaks.append(peak)
    return torch.cat(peaks, dim=-1)


def reference_attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The slow twin of `document_attention`: every score at once, differentiated by autograd."""
    place = torch.arange(q.shape[2], device=q.device)
    hidden = (place > place[:, None]) | (place < starts[:, :, None])
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(hidden.unsqueeze(1), -torch.inf)
    return scores.softmax(-1) @ v, scores.amax(-1)
