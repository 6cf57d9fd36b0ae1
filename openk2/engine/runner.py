"""Running pieces of sequences through the model against the paged cache.

All tokens of a step go through the matrices together; attention sees them in
groups: short pieces of all sequences at once against gathered latents, without
unfolding them; beginnings of prompts packed as documents, as in training; what
goes on from a long beginning by itself, its latents unfolded. In
batch-invariant arithmetic all are unfolded, over tiles of fixed size.
Products of a size never seen before are compiled first, which can take longer
than the product and is kept: tokens are filled up to few sizes.
Invariant: each token attends to the latents that the store gives back, so that
an 8-bit cache is felt from the first token on.

Shapes: N tokens of a step, B sequences of a group, T tokens of a piece, S cached tokens, H heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import abc
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from openk2.engine.block_pool import BLOCK
from openk2.engine.latent_store import LatentStore
from openk2.engine.scheduler import Piece
from openk2.model.mla import MultiHeadLatentAttention
from openk2.model.model import Model
from openk2.ops.attention import Tiling, document_attention
from openk2.ops.attention_backends import BACKENDS, choose_backend
from openk2.ops.invariant import tile_attention

SHORT = 64  # tokens of a piece up to which latents are not unfolded for it
GATHERED_SCORES = 1 << 24  # of one group, all heads: what is held at once


class Read(NamedTuple):
    """Of the pieces after which something is predicted: logits [R, V] and chosen experts [L_moe, R, K]."""

    logits: Tensor
    experts: Tensor


def run(model: Model, store: LatentStore, pieces: abc.Sequence[Piece], *, read_all: bool = False) -> Read:
    """Read the pieces' tokens. Results are in the order of the pieces that predict; of every token with `read_all`."""
    tokens = torch.tensor([token for piece in pieces for token in piece.sequence.tokens[piece.first : piece.last]])
    positions = torch.cat([torch.arange(piece.first, piece.last) for piece in pieces])
    ends = torch.tensor([piece.last - piece.first for piece in pieces]).cumsum(0)
    predicting = torch.tensor([piece.predicts for piece in pieces])
    read = torch.arange(len(tokens)) if read_all else ends[predicting] - 1
    fill = filled_up(len(tokens)) - len(tokens)
    cache = _Step(model, store, pieces)
    return Read(*model.extend(F.pad(tokens, (0, fill)), F.pad(positions, (0, fill)), cache, read))


def filled_up(count: int) -> int:
    """The next of few sizes, an eighth more at most where there are many."""
    return -(-count // (step := 8 if count <= 64 else 32 if count <= 512 else 128)) * step if count > 1 else count


class _Step:
    """`openk2.model.model.LatentCache` for the pieces of one step; what fills it up attends to nothing."""

    def __init__(self, model: Model, store: LatentStore, pieces: abc.Sequence[Piece]) -> None:
        self._store = store
        self._heads = model.config.num_attention_heads
        invariant = BACKENDS[choose_backend(model.attention, model.lm_head.weight.device)].batch_invariant
        places, place = [], 0
        for piece in pieces:
            places.append(_Place(piece, slice(place, place + piece.last - piece.first)))
            place += piece.last - piece.first
        self._slots = torch.cat([p.slots(p.piece.first) for p in places])
        self._groups: list[_Group] = []
        if invariant:
            self._groups += [_Tiles(store, group) for group in _alike(places, self._heads)]
            return
        fresh = [p for p in places if p.piece.first == 0]
        going_on = [p for p in places if p.piece.first > 0]
        short = [p for p in going_on if p.length <= SHORT]
        if fresh:
            self._groups.append(_Beginnings(store, fresh))
        self._groups += [_Absorbed(store, group) for group in _alike(short, self._heads)]
        self._groups += [_Unfolded(store, p) for p in going_on if p.length > SHORT]

    def attend(self, layer: int, attention: MultiHeadLatentAttention, x: Tensor, turns: Tensor) -> Tensor:
        latents = torch.cat(attention.latents(x, turns), dim=-1)
        self._store.write(layer, self._slots, latents[: len(self._slots)])
        q = attention.queries(x, turns)[0]  # [H, N, n + r]
        if len(self._groups) == 1 and self._groups[0].in_order and len(self._slots) == len(x):
            return attention.output(self._groups[0].attend(layer, attention, q, latents))
        out = x.new_zeros(len(x), self._heads * attention.config.v_head_dim)
        for group in self._groups:
            out[group.rows] = group.attend(layer, attention, q[:, group.rows], latents[group.rows])
        return attention.output(out)


class _Place(NamedTuple):
    """A piece, and where its tokens are in the step."""

    piece: Piece
    rows: slice

    @property
    def length(self) -> int:
        return self.piece.last - self.piece.first

    def slots(self, first: int) -> Tensor:
        """Of the tokens from `first` to the piece's last."""
        place = torch.arange(first, self.piece.last)
        return torch.tensor(self.piece.sequence.blocks)[place // BLOCK] * BLOCK + place % BLOCK


class _Group(ABC):
    """Pieces that attend together; `rows` int [N'] are their tokens."""

    def __init__(self, store: LatentStore, places: abc.Sequence[_Place]) -> None:
        self.store = store
        self.rows = torch.cat([torch.arange(p.rows.start, p.rows.stop) for p in places])
        self.lengths = [p.length for p in places]
        # From the step's first token on: nothing need be picked out where there is no other group.
        self.in_order = torch.equal(self.rows, torch.arange(len(self.rows)))

    @abstractmethod
    def attend(self, layer: int, attention: MultiHeadLatentAttention, q: Tensor, latents: Tensor) -> Tensor:
        """q [H, N', n + r], latents [N', C + r] of the group's tokens: the heads' values [N', H * v]."""


class _Beginnings(_Group):
    """Pieces from the first token on: packed in a row as documents."""

    def __init__(self, store: LatentStore, places: abc.Sequence[_Place]) -> None:
        super().__init__(store, places)
        self.fill = filled_up(len(self.rows)) - len(self.rows)  # a document of its own
        lengths = torch.tensor([*self.lengths, self.fill])
        starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        self.tiling = Tiling(starts[None])
        self.slots = torch.cat([p.slots(0) for p in places])

    def attend(self, layer: int, attention: MultiHeadLatentAttention, q: Tensor, latents: Tensor) -> Tensor:
        if not self.store.exact:
            latents = self.store.read(layer, self.slots)
        k, v = _unfold(attention, F.pad(latents, (0, 0, 0, self.fill))[None])
        out, _ = document_attention(F.pad(q, (0, 0, 0, self.fill))[None], k, v, self.tiling, attention.scale)
        return out.transpose(1, 2).flatten(2)[0, : len(latents)]


class _Unfolded(_Group):
    """A long piece of one sequence after what was read of it before."""

    def __init__(self, store: LatentStore, place: _Place) -> None:
        super().__init__(store, [place])
        self.slots = _whole_blocks(place.slots(0))  # those behind the last token are seen by none
        starts = torch.zeros(1, place.piece.last, dtype=torch.int64)
        self.tiling = Tiling(starts, skipped=place.piece.first)

    def attend(self, layer: int, attention: MultiHeadLatentAttention, q: Tensor, latents: Tensor) -> Tensor:
        k, v = _unfold(attention, self.store.read(layer, self.slots)[None])
        out, _ = document_attention(q[None], k, v, self.tiling, attention.scale)
        return out.transpose(1, 2).flatten(2)[0]


class _Gathered(_Group):
    """Pieces of several sequences, filled up to one length: a shorter one repeats its last token, whose result is
    left out; slots beyond a sequence's last token are any slot, hidden by position."""

    def __init__(self, store: LatentStore, places: abc.Sequence[_Place]) -> None:
        super().__init__(store, places)
        length = 1 << (max(self.lengths) - 1).bit_length()
        longest = -(-max(p.piece.last for p in places) // BLOCK) * BLOCK
        steps = torch.arange(length)
        firsts, counts = torch.tensor([p.piece.first for p in places]), torch.tensor(self.lengths)
        within = torch.minimum(steps, counts[:, None] - 1)  # [B, T]
        self.positions = firsts[:, None] + within
        self.even = min(self.lengths) == length
        starts = counts.cumsum(0) - counts
        self.picked = (starts[:, None] + within).flatten()  # of the group's tokens
        self.real = torch.cat([row * length + torch.arange(n) for row, n in enumerate(self.lengths)])
        self.slots = torch.zeros(len(places), longest, dtype=torch.int64)
        for row, p in enumerate(places):
            slots = p.slots(0)
            self.slots[row, : len(slots)] = slots

    def attend(self, layer: int, attention: MultiHeadLatentAttention, q: Tensor, latents: Tensor) -> Tensor:
        if not self.even:
            q = q[:, self.picked]
        q = q.unflatten(1, self.positions.shape).transpose(0, 1)  # [B, H, T, n + r]
        out = self.mix(attention, q, self.store.read(layer, self.slots))
        return out if self.even else out[self.real]

    @abstractmethod
    def mix(self, attention: MultiHeadLatentAttention, q: Tensor, cache: Tensor) -> Tensor:
        """q [B, H, T, n + r], cache [B, S, C + r]: the heads' values [B * T, H * v]."""


class _Absorbed(_Gathered):
    def mix(self, attention: MultiHeadLatentAttention, q: Tensor, cache: Tensor) -> Tensor:
        return attention.absorbed(q, cache, self.positions)


class _Tiles(_Gathered):
    def mix(self, attention: MultiHeadLatentAttention, q: Tensor, cache: Tensor) -> Tensor:
        k, v = _unfold(attention, cache)
        mixed, _, sums = tile_attention(q, k, v, self.positions, attention.scale)
        return (mixed / sums.unsqueeze(-1)).to(q.dtype).transpose(1, 2).flatten(2).flatten(0, 1)


def _unfold(attention: MultiHeadLatentAttention, latents: Tensor) -> tuple[Tensor, Tensor]:
    """latents [B, S, C + r] -> keys [B, H, S, n + r] and values [B, H, S, v]."""
    rank = attention.config.kv_lora_rank
    latent, rope = latents.flatten(0, 1).split((rank, latents.shape[-1] - rank), dim=-1)
    return attention.keys_values(latent.contiguous(), rope.contiguous(), len(latents))


def _whole_blocks(slots: Tensor) -> Tensor:
    """Filled up with slot 0."""
    return F.pad(slots, (0, -len(slots) % BLOCK))


def _alike(places: abc.Sequence[_Place], heads: int) -> Iterator[list[_Place]]:
    """Groups of similar length and number of cached tokens, whose scores, filled up, stay within a bound."""
    group: list[_Place] = []
    for place in sorted(places, key=lambda p: (p.length, p.piece.last)):
        together = [*group, place]
        tokens = len(together) * place.length
        alike = not group or (
            place.length <= 2 * group[0].length and place.piece.last <= 2 * group[0].piece.last + BLOCK
        )
        if group and not (alike and tokens * max(p.piece.last for p in together) * heads <= GATHERED_SCORES):
            yield group
            together = [place]
        group = together
    if group:
        yield group
