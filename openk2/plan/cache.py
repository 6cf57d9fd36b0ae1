"""Bytes that a token leaves in the cache, and how much smaller that is than which alternative.

Multi-head latent attention keeps one latent and one rotary key per token and
layer, shared by all heads. "N times smaller" means nothing without what it is
compared with, so every ratio here names its denominator.
"""

from __future__ import annotations

from dataclasses import dataclass

from openk2.config import ModelConfig

BF16_BYTES = 2
SCALE_GROUP = 64  # values of an 8-bit latent that share one fp16 scale
_SCALE_BYTES = 2


@dataclass(frozen=True)
class CacheRatio:
    """`ratio` times smaller than `against`, when the cache is stored as `stored`."""

    stored: str
    against: str
    ratio: float


@dataclass(frozen=True)
class CachePlan:
    values_per_layer: int  # per token
    bytes_per_token: int  # bf16, all layers
    eight_bit_bytes_per_layer: int  # per token, as the engine keeps it: 8-bit latent, its scales, bf16 rotary key
    ratios: tuple[CacheRatio, ...]


def plan_cache(config: ModelConfig) -> CachePlan:
    """The latent cache of a model; the alternatives hold bf16 keys and values of every head."""
    latent = config.latent_dim
    scales = -(-config.kv_lora_rank // SCALE_GROUP) * _SCALE_BYTES
    eight_bit = config.kv_lora_rank + scales + BF16_BYTES * config.qk_rope_head_dim
    heads, value = config.num_attention_heads, config.v_head_dim
    stored = (
        ("bf16", BF16_BYTES * latent),
        ("8-bit throughout (ideal)", latent),
        ("8-bit latent with scales, bf16 rotary key", eight_bit),
    )
    alternatives = (
        (
            f"its own keys and values, ({config.qk_head_dim}+{value}) x {heads} heads",
            heads * (config.qk_head_dim + value),
        ),
        (
            f"keys and values without the rotary part, ({config.qk_nope_head_dim}+{value}) x {heads} heads",
            heads * (config.qk_nope_head_dim + value),
        ),
    )
    ratios = tuple(
        CacheRatio(form, f"{against}, bf16", BF16_BYTES * values / size)
        for form, size in stored
        for against, values in alternatives
    )
    return CachePlan(latent, BF16_BYTES * latent * config.num_hidden_layers, eight_bit, ratios)
