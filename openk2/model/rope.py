"""Rotary positions with YaRN, on interleaved pairs as the released weights store them.

Invariant: rotating pairs (x0, x1), (x2, x3), ... in place (`ops.rope`)
gives the same scores as de-interleaving first, since queries and keys are
permuted alike.
Source: K2's config (rope_scaling) and DeepSeek-V3's published rotary code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from openk2.config.model import ModelConfig, YarnConfig


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature m(s, k) = 0.1 k ln s + 1, and 1 where nothing is stretched."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def softmax_scale(config: ModelConfig) -> float:
    """1/sqrt(qk_head_dim), times m^2 under YaRN: 0.130861 for K2."""
    scale = config.qk_head_dim**-0.5
    if config.rope_scaling is not None and config.rope_scaling.mscale_all_dim:
        scale *= yarn_mscale(config.rope_scaling.factor, config.rope_scaling.mscale_all_dim) ** 2
    return scale


def _correction_index(rotations: float, dim: int, theta: float, yarn: YarnConfig) -> float:
    """The (fractional) pair that turns `rotations` times over the original context."""
    return dim * math.log(yarn.original_max_position_embeddings / (rotations * 2 * math.pi)) / (2 * math.log(theta))


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """One angle per position step for each rotary pair, fp32 [rope_dim / 2]."""
    dim = config.qk_rope_head_dim
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    yarn = config.rope_scaling
    if yarn is None:
        return frequencies
    low = max(math.floor(_correction_index(yarn.beta_fast, dim, config.rope_theta, yarn)), 0)
    high = min(math.ceil(_correction_index(yarn.beta_slow, dim, config.rope_theta, yarn)), dim - 1)
    # A ramp of zero width would divide by zero; DeepSeek widens it by a thousandth of a pair.
    width = high - low if high > low else 1e-3
    interpolated_share = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return frequencies * (1 - interpolated_share) + (frequencies / yarn.factor) * interpolated_share


def rotary_turns(config: ModelConfig, num_positions: int) -> Tensor:
    """What each position multiplies its pairs with, complex64 [num_positions, rope_dim / 2], YaRN's magnitude ratio
    included (1 for K2)."""
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), inverse_frequencies(config))
    yarn = config.rope_scaling
    ratio = 1.0
    if yarn is not None and yarn.mscale and yarn.mscale_all_dim:
        ratio = yarn_mscale(yarn.factor, yarn.mscale) / yarn_mscale(yarn.factor, yarn.mscale_all_dim)
    elif yarn is not None:
        ratio = yarn_mscale(yarn.factor, 1.0)
    return torch.complex(angles.cos() * ratio, angles.sin() * ratio)
