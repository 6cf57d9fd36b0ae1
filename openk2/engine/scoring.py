"""Log-probabilities of given text by a model's own forward pass, several sequences at a time.

Left out: reading through a cache (`Engine.score` does, where its cache is not exact).
"""

from __future__ import annotations

from collections import abc

import numpy as np
import torch
from torch import Tensor

from openk2.model.model import Model

SCORING_TOKENS = 8192  # padded tokens of one pass


@torch.no_grad()
def score(model: Model, sequences: abc.Sequence[abc.Sequence[int]]) -> list[np.ndarray]:
    """Natural log-probabilities of ids[1:] for each sequence, as `model` has them in one pass."""
    found: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(sequences)
    for rows in _by_length([len(s) for s in sequences], SCORING_TOKENS):
        ids = _padded([sequences[row] for row in rows])
        targets = torch.full_like(ids, -100)
        for place, row in enumerate(rows):
            targets[place, : len(sequences[row]) - 1] = ids[place, 1 : len(sequences[row])]
        log_probs, _ = model.log_probs(ids, targets)
        for place, row in enumerate(rows):
            found[row] = log_probs[place, : len(sequences[row]) - 1].numpy()
    return found


def _padded(sequences: abc.Sequence[abc.Sequence[int]]) -> Tensor:
    """Right-padded ids [B, T]: causal attention never looks at the padding."""
    ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
    return ids


def _by_length(lengths: abc.Sequence[int], limit: int) -> list[list[int]]:
    """Indices in groups of similar length whose padded tokens stay within `limit` (one at least)."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[index] <= limit:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
