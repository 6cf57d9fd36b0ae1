"""Loss on held-out batches, without touching what training counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from openk2.data.batch import Batch
from openk2.model.model import Model
from openk2.train.batch import cross_entropy, to_tensors


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """Without gradients and in evaluation mode; afterwards the model is in the mode it was in."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def mean_loss(model: Model, batches: Iterable[Batch]) -> float:
    """Mean negative log-likelihood in nats over all counted targets; ValueError if there is none."""
    total = weight = 0.0
    with _evaluating(model):
        for batch in batches:
            micro = to_tensors(batch, lambda weights: cross_entropy(weights, 1.0))
            log_probs, _ = model.log_probs(micro.input_ids, micro.targets, micro.layout)
            total += float(micro.objective(log_probs))
            weight += float(micro.weights.sum())
    if not weight:
        raise ValueError("validation: saw no target that counts, expected some; hold out more text or dialogues")
    return total / weight


def copy_loss(model: Model, vocab_size: int, *, rows: int = 16, length: int = 32) -> float:
    """Mean negative log-likelihood in nats of the second half of random sequences said twice.

    A model with induction heads (Olsson and others 2022) comes near 0, one without stays at ln(vocab_size) or above
    it, for text has taught it to be surprised. Drawn from the ordinary tokens [0, vocab_size) by a fixed seed.
    """
    once = torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    ids = torch.cat((once, once), dim=1)
    with _evaluating(model):
        log_probs, _ = model.log_probs(ids[:, :-1], ids[:, 1:])
    return -float(log_probs[:, length:].mean())
