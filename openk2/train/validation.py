"""Loss on held-out batches, without touching what training counts."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from openk2.data.batch import Batch
from openk2.model.model import Model
from openk2.train.batch import cross_entropy, to_tensors


@torch.no_grad()
def mean_loss(model: Model, batches: Iterable[Batch]) -> float:
    """Mean negative log-likelihood in nats over all counted targets."""
    training = model.training
    model.eval()
    total = weight = 0.0
    for batch in batches:
        micro = to_tensors(batch, lambda weights: cross_entropy(weights, 1.0))
        log_probs, _ = model.log_probs(micro.input_ids, micro.targets, micro.layout)
        total += float(micro.objective(log_probs))
        weight += float(micro.weights.sum())
    model.train(training)
    return total / weight
