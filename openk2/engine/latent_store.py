"""Where cached latents lie: kv_lora_rank + rope values a token and layer, in the compute dtype or with 8-bit latents.

A slot is a token's place: block * BLOCK + its place in the block. Shapes: L
layers, S slots, C latent, r rope, G groups of a latent that share a scale.
"""

from __future__ import annotations

import math
import mmap
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from openk2.config.model import ModelConfig
from openk2.plan.cache import SCALE_GROUP

HALF = torch.finfo(torch.float16)


class LatentStore(ABC):
    """Slots for latents with their rotary keys."""

    exact: bool  # whether what is read has the bits that were written

    @abstractmethod
    def write(self, layer: int, slots: Tensor, latents: Tensor) -> None:
        """Put latents [N, C + r] into slots int [N]."""

    @abstractmethod
    def read(self, layer: int, slots: Tensor) -> Tensor:
        """The latents in slots int [...]: [..., C + r] in the compute dtype."""

    @abstractmethod
    def copy(self, source: int, target: int, count: int) -> None:
        """Copy `count` slots that follow each other, of all layers, from slot `source` to slot `target`."""

    @property
    @abstractmethod
    def bytes_per_token(self) -> int:
        """Of all layers, scales included."""


class PlainStore(LatentStore):
    exact = True

    def __init__(self, config: ModelConfig, num_slots: int, dtype: torch.dtype) -> None:
        self.values = _room((config.num_hidden_layers, num_slots, config.latent_dim), dtype)

    def write(self, layer: int, slots: Tensor, latents: Tensor) -> None:
        self.values[layer].index_copy_(0, slots, latents)

    def read(self, layer: int, slots: Tensor) -> Tensor:
        return self.values[layer].index_select(0, slots.flatten()).unflatten(0, slots.shape)

    def copy(self, source: int, target: int, count: int) -> None:
        self.values[:, target : target + count] = self.values[:, source : source + count]

    @property
    def bytes_per_token(self) -> int:
        return self.values[:, 0].nbytes


class Int8Store(LatentStore):
    """Latents as signed bytes, the largest of each group of values scaled to 127; rotary keys as they are.

    Bytes rather than FP8 (e4m3): a normalised latent's values are of one size, and three bits of mantissa give four
    times the error (tests/engine/test_latent_store.py).
    """

    exact = False

    def __init__(self, config: ModelConfig, num_slots: int, dtype: torch.dtype) -> None:
        layers, self._rank = config.num_hidden_layers, config.kv_lora_rank
        self._group = min(SCALE_GROUP, self._rank)
        if self._rank % self._group:
            raise ValueError(
                f"8-bit cache: saw kv_lora_rank {self._rank}, expected a multiple of {SCALE_GROUP} or less"
            )
        self._latents = _room((layers, num_slots, self._rank), torch.int8)
        self._scales = _room((layers, num_slots, self._rank // self._group), torch.float16)
        self._rope = _room((layers, num_slots, config.qk_rope_head_dim), dtype)

    def write(self, layer: int, slots: Tensor, latents: Tensor) -> None:
        latent, rope = latents.split((self._rank, self._rope.shape[-1]), dim=-1)
        groups = latent.float().unflatten(-1, (-1, self._group))
        # The scale is rounded before it divides: what is multiplied back is what was divided by.
        scales = (groups.abs().amax(-1) / 127).clamp(HALF.tiny, HALF.max).half()
        values = (groups / scales.float().unsqueeze(-1)).round().clamp(-127, 127)
        self._latents[layer].index_copy_(0, slots, values.flatten(-2).to(torch.int8))
        self._scales[layer].index_copy_(0, slots, scales)
        self._rope[layer].index_copy_(0, slots, rope)

    def read(self, layer: int, slots: Tensor) -> Tensor:
        flat = slots.flatten()
        values, scales, rope = (x[layer].index_select(0, flat) for x in (self._latents, self._scales, self._rope))
        latent = values.unflatten(-1, (-1, self._group)) * scales.float().unsqueeze(-1)
        return torch.cat((latent.flatten(-2).to(rope.dtype), rope), dim=-1).unflatten(0, slots.shape)

    def copy(self, source: int, target: int, count: int) -> None:
        for part in (self._latents, self._scales, self._rope):
            part[:, target : target + count] = part[:, source : source + count]

    @property
    def bytes_per_token(self) -> int:
        return sum(part[:, 0].nbytes for part in (self._latents, self._scales, self._rope))


def _room(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in memory that the system gives out page by page as it is first written. Zeros, for rows that stand for
    nothing are multiplied by exact zeros, which must not meet a stray infinity."""
    count = math.prod(shape)
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize), dtype=dtype, count=count).view(shape)
