"""Arithmetic in which a row's bits do not depend on the rows beside it (batch invariance).

What it is: inside `with batch_invariant():` a token comes out of the model the
same whatever shares its batch, however its prompt was cut into pieces, and in
training as in generation. bf16 products are so already, on the CPUs measured
(`openk2 compare-modes` checks the one at hand); what is not, is done another
way here: the router's fp32 product in blocks of fixed size, attention over
tiles of keys of fixed length from the document's start, their sums added one
tile after the other, and nothing compiled, for a compiled kernel may round
otherwise than the function it was made of.

Invariant: products see one size of tile, filled up with zeros; masked scores
add exact zeros. Left out: gradients (attention's backward pass is the tiled
one), and GPUs, where rows of products do depend on their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

KEY_TILE = 64
QUERY_BLOCK = 256  # queries whose scores with all keys are held at once
ROW_BLOCK = 32  # rows of an fp32 product
_active = False


@contextmanager
def batch_invariant(enabled: bool = True) -> Iterator[None]:
    """Compute so within; one thread at a time."""
    global _active
    before, _active = _active, _active or enabled
    try:
        yield
    finally:
        _active = before


def is_batch_invariant() -> bool:
    return _active


def wide_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [N, in] weight [out, in]^T for fp32, whose rows depend on N unless they are taken in blocks of one size."""
    if not _active:
        return F.linear(x, weight)
    rows = len(x)
    blocks = F.pad(x, (0, 0, 0, -rows % ROW_BLOCK)).view(-1, ROW_BLOCK, x.shape[1])
    return torch.bmm(blocks, weight.t().expand(len(blocks), -1, -1)).flatten(0, 1)[:rows]


def tile_attention(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention of some queries over keys from position 0 on.

    q [B, H, T, d] at `positions` int [B, T]; k [B, H, S, d] and v [B, H, S, w], finite also where no query looks, S at
    least the last position + 1. Returns what the exponentials mix [B, H, T, w], each query's peak and its sum of
    exponentials [B, H, T], all fp32: the output is the first over the last.
    """
    fill = -k.shape[2] % KEY_TILE
    k, v = F.pad(k, (0, 0, 0, fill)), F.pad(v, (0, 0, 0, fill))
    parts = []
    for first in range(0, q.shape[2], QUERY_BLOCK):
        block = slice(first, first + QUERY_BLOCK)
        num_tiles = int(positions[:, block].max()) // KEY_TILE + 1
        seen = slice(0, num_tiles * KEY_TILE)
        parts.append(_attend(q[:, :, block], k[:, :, seen], v[:, :, seen], positions[:, block], scale))
    mixed, peaks, sums = (torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True))
    return mixed, peaks, sums


def _attend(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """`tile_attention` of one block of queries; as many keys as fill tiles."""
    batch, heads, length, _ = q.shape
    # Products of a size never seen before are compiled first: few sizes occur, and not one for each number of tiles.
    q = F.pad(q, (0, 0, 0, -length % ROW_BLOCK if length > 1 else 0))
    positions = F.pad(positions, (0, q.shape[2] - length))
    rows, tiles = q.shape[2], k.shape[2] // KEY_TILE
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    scores = q.new_empty(tiles, len(q), rows, KEY_TILE)
    for tile, keys in enumerate(k.split(KEY_TILE, dim=1)):
        torch.bmm(q, keys.transpose(1, 2), out=scores[tile])
    scaled = scores.view(tiles, batch, heads, rows, KEY_TILE).float() * scale
    place = torch.arange(tiles * KEY_TILE, device=q.device).view(tiles, 1, 1, 1, KEY_TILE)
    scaled.masked_fill_(place > positions[None, :, None, :, None], -torch.inf)
    peaks = scaled.amax((0, 4))
    exponentials = torch.exp(scaled - peaks[..., None]).to(q.dtype)
    # As rounded, for so they multiply the values; contiguous rows of one length are summed in one order.
    sums = exponentials.float().sum(-1)
    mixed, total = q.new_zeros(batch, heads, rows, v.shape[-1], dtype=torch.float32), torch.zeros_like(sums[0])
    for tile, values in enumerate(v.split(KEY_TILE, dim=1)):
        mixed += torch.bmm(exponentials[tile].flatten(0, 1), values).view_as(mixed)
        total += sums[tile]
    return mixed[:, :, :length], peaks[:, :, :length], total[:, :, :length]
