"""K2's policy objective on whole sampled dialogues (arXiv 2507.20534, section 3.2.3).

For a prompt's K samples with rewards r_i: minimise the mean of
[ r_i - mean(r) - tau * log(pi(y_i) / pi_old(y_i)) ]^2. log pi is summed over
the tokens that the policy sampled; pi_old is what the sampler recorded.
"""

from __future__ import annotations

import torch
from torch import Tensor


def advantages(rewards: Tensor, groups: Tensor) -> Tensor:
    """r - mean of its group; rewards fp32 [S], groups int [S]."""
    num_groups = int(groups.max()) + 1
    totals = torch.zeros(num_groups).index_add(0, groups, rewards)
    counts = torch.zeros(num_groups).index_add(0, groups, torch.ones_like(rewards))
    return rewards - (totals / counts)[groups]


def sequence_log_prob(log_probs: Tensor, example_ids: Tensor, num_examples: int) -> Tensor:
    """Sum of the sampled tokens' log-probabilities per example.

    log_probs [B, T] is 0 where a token was not sampled; example_ids [B, T] is
    -1 for padding. Returns [num_examples].
    """
    flat = example_ids.flatten()
    real = flat >= 0
    return torch.zeros(num_examples, dtype=log_probs.dtype).index_add(0, flat[real], log_probs.flatten()[real])


def regularised_squared_error(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, tau: float) -> Tensor:
    """[advantage - tau * (log_prob - old_log_prob)]^2, one per sample [S]."""
    return (advantage - tau * (log_prob - old_log_prob)).square()
