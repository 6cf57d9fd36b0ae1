"""Causal attention within documents, tiled over query blocks, with each query's largest score.

What it is: the training and prefill attention of the CPU. Queries are taken
a block at a time against the keys from the start of the block's first document
to the block's end, so that most of the score matrix is never computed. The
backward pass makes the probabilities again, except where they are few enough
to be kept. Scores accumulate in fp32 inside the product and are rounded to the
inputs' dtype.

Invariants: token i sees token j when `starts[i] <= j <= i`. Peaks are over
visible scores, scale included: in fp32 they are exact, in bf16 they may be off
by the final rounding (2^-8 relative), which is why QK-Clip asks
`exact_peak_scores` wherever the rounded value comes near its threshold.

The slow twin is `reference_attention`. Left out: dropout and attention sinks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from openk2.ops.fused import masked_softmax, softmax_backward

QUERY_BLOCK = 256  # a block's scores stay within the last-level cache at small batches
KEY_STEP = 64  # tiles begin at multiples of it, so that few shapes of products occur
KEPT_BYTES = 32 * 2**20  # a call's probabilities are kept for its backward pass up to this size


@dataclass(frozen=True)
class _Tile:
    """Queries `first` to `last` of `rows` against keys `low` to `last`; `heads` is where the rows' heads are."""

    rows: slice
    heads: slice
    first: int
    last: int
    low: int

    @property
    def queries(self) -> tuple[slice, slice]:
        return self.heads, slice(self.first, self.last)

    @property
    def keys(self) -> tuple[slice, slice]:
        return self.heads, slice(self.low, self.last)

    @property
    def num_scores(self) -> int:
        return (self.heads.stop - self.heads.start) * (self.last - self.first) * (self.last - self.low)


def _tiles(starts: Tensor, heads: int) -> Iterator[_Tile]:
    """Tiles that cover every visible score: one a query block where all rows see as far back, else one a row."""
    batch, length = starts.shape
    for first in range(0, length, QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, length)
        lows = [low - low % KEY_STEP for low in starts[:, first:last].amin(1).tolist()]
        step = batch if len(set(lows)) == 1 else 1
        for row in range(0, batch, step):
            end = row + step
            yield _Tile(slice(row, end), slice(row * heads, end * heads), first, last, lows[row])


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        batch, heads, length, _ = q.shape
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        out = torch.empty(batch * heads, length, v.shape[-1], dtype=q.dtype, device=q.device)
        peak_scores = _empty_peaks(q, batch)
        ctx.tiles = list(_tiles(starts, heads))
        ctx.kept = [] if sum(tile.num_scores for tile in ctx.tiles) * q.element_size() <= KEPT_BYTES else None
        for tile in ctx.tiles:
            weights, peak_scores[tile.rows, :, tile.first : tile.last] = _weights(q, k, starts, scale, tile)
            out[tile.queries] = torch.bmm(weights, v[tile.keys])
            if ctx.kept is not None:
                ctx.kept.append(weights)
        ctx.save_for_backward(q, k, v, starts)
        ctx.scale = scale
        ctx.mark_non_differentiable(peak_scores)
        return out.unflatten(0, (batch, heads)), peak_scores

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, _grad_peaks: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, starts = ctx.saved_tensors
        shape = grad_out.shape[:2]
        grad_out = grad_out.flatten(0, 1)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for index, tile in enumerate(ctx.tiles):
            weights = _weights(q, k, starts, ctx.scale, tile)[0] if ctx.kept is None else ctx.kept[index]
            grad_tile = grad_out[tile.queries]
            grad_v[tile.keys] += torch.bmm(weights.transpose(1, 2), grad_tile)
            grad_scores = softmax_backward(torch.bmm(grad_tile, v[tile.keys].transpose(1, 2)), weights, ctx.scale)
            grad_q[tile.queries] = torch.bmm(grad_scores, k[tile.keys])
            grad_k[tile.keys] += torch.bmm(grad_scores.transpose(1, 2), q[tile.queries])
        return grad_q.unflatten(0, shape), grad_k.unflatten(0, shape), grad_v.unflatten(0, shape), None, None


def _empty_peaks(q: Tensor, batch: int) -> Tensor:
    """Room for each query's peak score, [B, H, T], for q [B * H, T, d]."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty(batch, q.shape[0] // batch, q.shape[1], dtype=wide, device=q.device)


def _weights(q: Tensor, k: Tensor, starts: Tensor, scale: float, tile: _Tile) -> tuple[Tensor, Tensor]:
    """Attention weights [rows * H, queries, keys] of one tile and each query's peak score [rows, H, queries]."""
    scores = torch.bmm(q[tile.queries], k[tile.keys].transpose(1, 2)).unflatten(
        0, (tile.rows.stop - tile.rows.start, -1)
    )
    visible_from = starts[tile.rows, tile.first : tile.last] - tile.low
    weights, peak = masked_softmax(scores, visible_from, tile.first - tile.low, scale)
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
    batch, heads = q.shape[:2]
    q, k = q.float().flatten(0, 1), k.float().flatten(0, 1)
    peak_scores = _empty_peaks(q, batch)
    for tile in _tiles(starts, heads):
        _, peak_scores[tile.rows, :, tile.first : tile.last] = _weights(q, k, starts, scale, tile)
    return peak_scores


def reference_attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The slow twin of `document_attention`: every score at once, differentiated by autograd."""
    place = torch.arange(q.shape[2], device=q.device)
    hidden = (place > place[:, None]) | (place < starts[:, :, None])
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(hidden.unsqueeze(1), -torch.inf)
    return scores.softmax(-1) @ v, scores.amax(-1)
