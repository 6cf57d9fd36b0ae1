"""QK-Clip: after the step, shrink the query and key rows of heads whose scores grew beyond tau.

Per head h with maximum score S_h > tau and gamma = tau / S_h: the query's and
the key's nope rows are scaled by sqrt(gamma), the query's rotary rows by
gamma; the rotary key, shared by all heads, and the value rows stay untouched.
So the same batch's maximum would be tau, had the weights not just moved.
Source: K2 report (arXiv 2507.20534), section 2.1 and appendix D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openk2.protocols import QKGroup


@torch.no_grad()
def qk_clip_(groups: Sequence[QKGroup], max_scores: Tensor, tau: float) -> Tensor:
    """Scale the weights in place.

    max_scores [L, H] are the largest softmax inputs of the step's forwards,
    scale included, over all micro-batches. Returns gamma [L, H], 1 where no
    head was clipped. A non-finite maximum is an error: it must be caught
    before weights are touched.
    """
    if max_scores.shape[0] != len(groups):
        raise ValueError(f"qk_clip: saw maxima for {max_scores.shape[0]} layers, expected {len(groups)}")
    if not torch.isfinite(max_scores).all():
        raise ValueError("qk_clip: saw a non-finite maximum score; the step must be skipped before clipping")
    gamma = torch.where(max_scores > tau, tau / max_scores, 1.0)
    for group, layer_gamma in zip(groups, gamma, strict=True):
        if bool((layer_gamma < 1).any()):
            _clip_layer_(group, layer_gamma)
    return gamma


def _clip_layer_(group: QKGroup, gamma: Tensor) -> None:
    query = group.query.view(group.num_heads, group.nope_dim + group.rope_dim, -1)
    key_value = group.key_value.view(group.num_heads, group.nope_dim + group.value_dim, -1)
    root = gamma.sqrt().view(-1, 1, 1).to(query.dtype)
    query[:, : group.nope_dim].mul_(root)
    query[:, group.nope_dim :].mul_(gamma.view(-1, 1, 1).to(query.dtype))
    key_value[:, : group.nope_dim].mul_(root)
