"""Loss on held-out batches, without touching what training counts."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from openk2.data.batch import Batch
from openk2.model.model import Model
from openk2.train.batch import cross_entropy, to_tensors


@torch.no_grad()
def mean_loss(model: Model, batches: Iterable[Batch]) -> float:
    """Mean negative log-likelihood in nats over all counted targets; ValueError if there is none."""
    training = model.training
    model.eval()
    total = weight = 0.0
    for batch in batches:
        micro = to_tensors(batch, lambda weights: cross_entropy(weights, 1.0))
        log_probs, _ = model.log_probs(micro.input_ids, micro.targets, micro.layout)
        total += float(micro.objective(log_probs))
        weight += float(micro.weights.sum())
    model.train(training)
    if not weight:
        raise ValueError("validation: saw no target that counts, expected some; hold out more text or dialogues")
    return total / weight


@torch.no_grad()
def copy_loss(model: Model, vocab_size: int, *, rows: int = 16, length: int = 32) -> float:
    """Mean negative log-likelihood in nats of the second half of random sequences said twice.

    A model that cannot copy (no induction heads, Olsson and others 2022) stays at about ln(vocab_size). Drawn from
    the ordinary tokens [0, vocab_size) by a fixed seed.
    """
    training = model.training
    model.eval()
    once = torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    ids = torch.cat((once, once), dim=1)
    log_probs, _ = model.log_probs(ids[:, :-1], ids[:, 1:])
    model.train(training)
    return -float(log_probs[:, length:].mean())
