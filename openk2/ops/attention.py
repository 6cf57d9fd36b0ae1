"""Causal attention within documents, tiled over query blocks, with the per-head maximum of its scores.

What it is: the training and prefill attention of the CPU. Queries are taken
a block at a time against the keys up to the block's end, so that half of the
score matrix is never computed and none of it is kept: the backward pass makes
the probabilities again. Scores accumulate in fp32 inside the product and are
rounded to the inputs' dtype.

Invariants: token i sees token j when `starts[i] <= j <= i`. The returned
maximum is over visible scores, scale included: in fp32 it is exact, in bf16
it may be off by the final rounding (2^-8 relative), which is why QK-Clip asks
`exact_max_scores` wherever the rounded value comes near its threshold.

The slow twin is `reference_attention`. Left out: dropout and attention sinks.
"""

from __future__ import annotations

import torch
from torch import Tensor

QUERY_BLOCK = 256  # measured: 128 to 256 query rows keep a block's scores in the L2/L3 caches


def _hidden(starts: Tensor, first: int, last: int) -> Tensor:
    """True where query first..last-1 must not see key 0..last-1: bool [B, 1, queries, keys]."""
    keys = torch.arange(last, device=starts.device)
    queries = torch.arange(first, last, device=starts.device)
    later = keys[None, :] > queries[:, None]
    other_document = keys[None, None, :] < starts[:, first:last, None]
    return (later[None] | other_document).unsqueeze(1)


def _block_scores(q: Tensor, k: Tensor, starts: Tensor, scale: float, first: int, last: int) -> Tensor:
    """Masked scores [B, H, queries, keys] of one query block; hidden ones are the dtype's lowest value."""
    batch, heads = q.shape[:2]
    left = q[:, :, first:last].flatten(0, 1)
    right = k[:, :, :last].flatten(0, 1).transpose(1, 2)
    scores = torch.bmm(left, right).mul_(scale).unflatten(0, (batch, heads))
    return scores.masked_fill_(_hidden(starts, first, last), torch.finfo(scores.dtype).min)


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float):  # type: ignore[override]
        batch, heads, length, _ = q.shape
        out = torch.empty(batch, heads, length, v.shape[-1], dtype=q.dtype, device=q.device)
        max_scores = torch.full((batch, heads), -torch.inf, dtype=torch.float32, device=q.device)
        for first in range(0, length, QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, length)
            scores = _block_scores(q, k, starts, scale, first, last)
            max_scores = torch.maximum(max_scores, scores.amax((2, 3)).float())
            weights = torch.softmax(scores, dim=-1).flatten(0, 1)
            block = torch.bmm(weights, v[:, :, :last].flatten(0, 1))
            out[:, :, first:last] = block.unflatten(0, (batch, heads))
        ctx.save_for_backward(q, k, v, starts)
        ctx.scale = scale
        ctx.mark_non_differentiable(max_scores)
        return out, max_scores

    @staticmethod
    def backward(ctx, grad_out: Tensor, _grad_max: Tensor):  # type: ignore[override]
        q, k, v, starts = ctx.saved_tensors
        batch, heads, length, _ = q.shape
        grad_q = torch.empty_like(q)
        grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
        for first in range(0, length, QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, length)
            weights = torch.softmax(_block_scores(q, k, starts, ctx.scale, first, last), dim=-1).flatten(0, 1)
            grad_block = grad_out[:, :, first:last].flatten(0, 1)
            grad_v[:, :, :last] += torch.bmm(weights.transpose(1, 2), grad_block).unflatten(0, (batch, heads))
            grad_weights = torch.bmm(grad_block, v[:, :, :last].flatten(0, 1).transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(ctx.scale)
            keys, queries = k[:, :, :last].flatten(0, 1), q[:, :, first:last].flatten(0, 1)
            grad_q[:, :, first:last] = torch.bmm(grad_scores, keys).unflatten(0, (batch, heads))
            grad_k[:, :, :last] += torch.bmm(grad_scores.transpose(1, 2), queries).unflatten(0, (batch, heads))
        return grad_q, grad_k, grad_v, None, None


def document_attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention within documents.

    q, k [B, H, T, qk_dim], v [B, H, T, v_dim]; starts [B, T] is, for each
    position, the first position of its document. Returns the output
    [B, H, T, v_dim] and the maximum visible score per row and head, fp32 [B, H].
    """
    return _TiledAttention.apply(q, k, v, starts, scale)


@torch.no_grad()
def exact_max_scores(q: Tensor, k: Tensor, starts: Tensor, scale: float) -> Tensor:
    """The maximum visible score per row and head from fp32 products, fp32 [B, H], tile by tile."""
    q, k = q.float(), k.float()
    best = torch.full(q.shape[:2], -torch.inf, dtype=torch.float32, device=q.device)
    for first in range(0, q.shape[2], QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, q.shape[2])
        best = torch.maximum(best, _block_scores(q, k, starts, scale, first, last).amax((2, 3)))
    return best


def reference_attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The slow twin of `document_attention`: every score at once, differentiated by autograd."""
    hidden = _hidden(starts, 0, q.shape[2])
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ v, scores.amax((2, 3)).float()
