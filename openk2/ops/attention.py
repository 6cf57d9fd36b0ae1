"""Causal attention within documents, tiled over queries and keys, with each query's largest score.

What it is: the training and prefill attention of the CPU. Queries are taken
a block at a time against the keys from the start of the block's first document
to the block's end, long stretches of keys in blocks with a running maximum and
sum, so that no row of scores need ever be whole and most of the score matrix
is never computed. The backward pass makes the exponentials again from the
scores and the rows' maxima, except where they are few enough to be kept.
Source of the running softmax: Milakov and Gimelshein (arXiv 1805.02867); of the
backward pass over tiles: Dao (arXiv 2307.08691).

Invariants: token i sees token j when `starts[i] <= j <= i`. Scores accumulate
in fp32 inside the product and are rounded to the inputs' dtype; peaks are over
visible scores, scale included: exact in fp32, in bf16 off by that rounding at
most, which is why QK-Clip asks `exact_peaks` wherever a head's bound
exceeds its threshold.

The slow twin is `reference_attention`. Left out: dropout and attention sinks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from openk2.ops.fused import (
    fill_mask_,
    largest_of_block,
    mixed_gradient,
    softmax_block,
    softmax_block_backward,
    softmax_block_gradient,
    wide_dtype,
)

QUERY_BLOCK = 256
KEY_BLOCK = 2048  # keys of a tile: with the queries above a few megabytes of scores, which stay in a cache
KEY_STEP = 64  # tiles begin at multiples of it, so that few shapes of products occur
KEPT_BYTES = 32 * 2**20  # a call's exponentials are kept for its backward pass up to this size
MASK_BYTES = 32 * 2**20  # masks of tiles where documents begin are kept for all layers up to this size, else made again


@dataclass(frozen=True)
class Tile:
    """Queries at places `first` to `last` of `rows` against keys `low` to `high`; there are none at the first `skipped`
    places.

    `mask` names what hides some of these keys from some of these queries, equal names for equal masks: "causal" within
    one document, "rows" where documents of these rows begin. None: every query sees every key.
    """

    rows: slice
    first: int
    last: int
    low: int
    high: int
    skipped: int
    mask: tuple[str, int, int, int] | None

    @property
    def columns(self) -> slice:
        """Where the queries are among those that there are."""
        return slice(self.first - self.skipped, self.last - self.skipped)

    def queries(self, heads: int) -> tuple[slice, slice]:
        """Where the queries are in [B * H, T]."""
        return slice(self.rows.start * heads, self.rows.stop * heads), self.columns

    def keys(self, heads: int) -> tuple[slice, slice]:
        """Where the keys are in [B * H, T]."""
        return slice(self.rows.start * heads, self.rows.stop * heads), slice(self.low, self.high)

    @property
    def num_scores(self) -> int:
        """Scores of one head."""
        return (self.rows.stop - self.rows.start) * (self.last - self.first) * (self.high - self.low)


class Tiling:
    """Tiles that cover every visible score, and their masks, for all layers of a forward pass to share.

    starts [B, T] is, for each position, the first position of its document. The first `skipped` places have keys, but
    no queries: they were read before.
    """

    def __init__(self, starts: Tensor, skipped: int = 0) -> None:
        self.starts, self.skipped = starts.to(torch.int32), skipped
        self._masks: dict[tuple[str, int, int, int], Tensor] = {}
        self._room = MASK_BYTES

    @functools.cached_property
    def blocks(self) -> list[list[Tile]]:
        """The tiles by block of queries, their keys in order: of all rows where all see as far back, else of one."""
        return list(self._blocks())

    def _blocks(self) -> Iterator[list[Tile]]:
        batch, length = self.starts.shape
        for first in range(self.skipped, length, QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, length)
            seen_by_some, seen_by_all = (s.tolist() for s in self.starts[:, first:last].aminmax(dim=1))
            lows = [low - low % KEY_STEP for low in seen_by_some]
            step = batch if len(set(lows)) == 1 else 1
            for row in range(0, batch, step):
                whole_from = max(seen_by_all[row : row + step])
                bounds = [*range(lows[row], last, KEY_BLOCK), last]
                tiles = []
                for low, high in zip(bounds[:-1], bounds[1:], strict=True):
                    mask = None
                    if low < whole_from:
                        mask = ("rows", row, first, low)
                    elif high > first + 1:
                        mask = ("causal", last - first, high - low, first - low)
                    tiles.append(Tile(slice(row, row + step), first, last, low, high, self.skipped, mask))
                yield tiles

    def mask(self, tile: Tile) -> Tensor | None:
        """What is added to a tile's scores: 0 where the query sees the key, else -inf, bf16 [rows or 1, 1, queries,
        keys]; None where every query sees every key."""
        if tile.mask is None:
            return None
        if tile.mask in self._masks:
            return self._masks[tile.mask]
        causal = tile.mask[0] == "causal"
        rows = slice(tile.rows.start, tile.rows.start + 1) if causal else tile.rows
        visible_from = self.starts[rows, tile.first : tile.last] - tile.low
        shape = (len(visible_from), 1, tile.last - tile.first, tile.high - tile.low)
        mask = torch.empty(shape, dtype=torch.bfloat16, device=visible_from.device)
        fill_mask_(mask, visible_from, tile.first - tile.low)
        if not causal:
            self._room -= mask.nbytes
        if causal or self._room >= 0:
            self._masks[tile.mask] = mask
        return mask


class TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiling: Tiling, scale: float, keep: bool
    ) -> tuple[Tensor, Tensor]:
        batch, heads, length, _ = q.shape
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        # In the order in which the output projection reads it: position by position, its heads side by side.
        out = torch.empty(batch, length, heads, v.shape[-1], dtype=q.dtype, device=q.device)
        peaks, sums = _per_query(q, batch), _per_query(q, batch)
        num_scores = heads * sum(tile.num_scores for tiles in tiling.blocks for tile in tiles)
        few = num_scores * q.element_size() <= KEPT_BYTES and all(len(tiles) == 1 for tiles in tiling.blocks)
        ctx.kept = [] if keep and few and any(ctx.needs_input_grad) else None
        for tiles in tiling.blocks:
            rows, queries = tiles[0].rows, tiles[0].columns
            parts = []
            for tile in tiles:
                exponentials, peak, total = softmax_block(_scores(q, k, tile, heads), tiling.mask(tile), scale)
                mixed = torch.bmm(exponentials.flatten(0, 1), v[tile.keys(heads)]).unflatten(0, (-1, heads))
                parts.append((mixed, peak, total))
                if ctx.kept is not None:
                    ctx.kept.append(exponentials)
            mixed, peaks[rows, :, queries], sums[rows, :, queries] = _joined(parts)
            out[rows, queries] = (mixed / sums[rows, :, queries].unsqueeze(-1)).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, peaks, sums)
        ctx.tiling, ctx.scale = tiling, scale
        ctx.mark_non_differentiable(peaks)
        return out.transpose(1, 2), peaks

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, _grad_peaks: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, peaks, sums = ctx.saved_tensors
        heads = out.shape[2]
        grad_mixed, delta = mixed_gradient(grad_out.transpose(1, 2), out, sums)
        grad_mixed = grad_mixed.flatten(0, 1)
        # Sums of many products are kept wide; of one or two, rounding them once is as good.
        dtype = sums.dtype if out.shape[1] > 2 * QUERY_BLOCK else q.dtype
        grad_q, grad_k, grad_v = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (q, k, v))
        for index, tile in enumerate(tile for tiles in ctx.tiling.blocks for tile in tiles):
            queries, keys = tile.queries(heads), tile.keys(heads)
            grad_tile = grad_mixed[queries]
            grad_weights = torch.bmm(grad_tile, v[keys].transpose(1, 2)).unflatten(0, (-1, heads))
            rows = (tile.rows, slice(None), tile.columns)
            if ctx.kept is not None:
                exponentials = ctx.kept[index]
                grad_scores = softmax_block_gradient(grad_weights, exponentials, delta[rows], ctx.scale)
            else:
                exponentials, grad_scores = softmax_block_backward(
                    _scores(q, k, tile, heads),
                    ctx.tiling.mask(tile),
                    ctx.scale,
                    grad_weights,
                    peaks[rows],
                    delta[rows],
                )
            exponentials, grad_scores = exponentials.flatten(0, 1), grad_scores.flatten(0, 1)
            grad_v[keys] += torch.bmm(exponentials.transpose(1, 2), grad_tile)
            grad_q[queries] += torch.bmm(grad_scores, k[keys])
            grad_k[keys] += torch.bmm(grad_scores.transpose(1, 2), q[queries])
        return *(x.to(q.dtype).unflatten(0, (-1, heads)) for x in (grad_q, grad_k, grad_v)), None, None, None


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Of blocks of keys, as of one block: mixed values [rows, H, queries, v], peaks and sums of exponentials."""
    if len(parts) == 1:
        return parts[0]
    peak = torch.stack([part[1] for part in parts]).amax(0)
    shrink = [torch.exp(part[1] - peak) for part in parts]  # every query sees itself: some peak is finite
    mixed = sum(part[0] * share.unsqueeze(-1) for part, share in zip(parts, shrink, strict=True))
    total = sum(part[2] * share for part, share in zip(parts, shrink, strict=True))
    return cast(Tensor, mixed), peak, cast(Tensor, total)


def _per_query(q: Tensor, batch: int) -> Tensor:
    """Room for a number of each query, [B, H, T], for q [B * H, T, d]."""
    return torch.empty(batch, q.shape[0] // batch, q.shape[1], dtype=wide_dtype(q.dtype), device=q.device)


def _scores(q: Tensor, k: Tensor, tile: Tile, heads: int) -> Tensor:
    """One tile's unscaled scores [rows, H, queries, keys]."""
    return torch.bmm(q[tile.queries(heads)], k[tile.keys(heads)].transpose(1, 2)).unflatten(0, (-1, heads))


def document_attention(
    q: Tensor, k: Tensor, v: Tensor, tiling: Tiling, scale: float, *, keep: bool = True
) -> tuple[Tensor, Tensor]:
    """Causal attention within documents.

    q, k [B, H, T, qk_dim], v [B, H, T, v_dim]; of the tiling's skipped places q has no rows. Returns the output
    [B, H, T, v_dim] and each query's largest visible score [B, H, T], fp32 (fp64 for fp64 inputs). Without `keep` the
    backward pass makes all exponentials again.
    """
    return cast(tuple[Tensor, Tensor], TiledAttention.apply(q, k, v, tiling, scale, keep))


@torch.no_grad()
def exact_peaks(q: Tensor, k: Tensor, tiling: Tiling, scale: float) -> Tensor:
    """Each query's largest visible score from fp32 products, fp32 [B, H, T], tile by tile."""
    batch, heads = q.shape[:2]
    q, k = q.float().flatten(0, 1), k.float().flatten(0, 1)
    peaks = _per_query(q, batch)
    for tiles in tiling.blocks:
        found = [largest_of_block(_scores(q, k, tile, heads), tiling.mask(tile), scale) for tile in tiles]
        peaks[tiles[0].rows, :, tiles[0].columns] = torch.stack(found).amax(0)
    return peaks


def hidden_pairs(starts: Tensor) -> Tensor:
    """Which keys each query must not see, bool [B, 1, T, T], for attention that holds every score."""
    place = torch.arange(starts.shape[1], device=starts.device)
    return ((place > place[:, None]) | (place < starts[:, :, None])).unsqueeze(1)


def reference_attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The slow twin of `document_attention`: every score at once, differentiated by autograd."""
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(hidden_pairs(starts), -torch.inf)
    return scores.softmax(-1) @ v, scores.amax(-1)
