"""From the loader's numpy batch to the tensors of one micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from openk2.data.batch import Batch
from openk2.model.layout import Layout

# log-probabilities of the targets, fp32 [B, T] (0 where there is no loss) -> this micro-batch's part of the step's loss
Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward: integer tensors [B, T], weights fp32 [B, T], and what is minimised."""

    input_ids: Tensor
    targets: Tensor
    weights: Tensor
    example_ids: Tensor
    layout: Layout
    objective: Objective

    @property
    def num_tokens(self) -> int:
        """Real tokens, padding left out."""
        return int((self.layout.documents >= 0).sum())


def cross_entropy(weights: Tensor, total_weight: float) -> Objective:
    """Mean negative log-likelihood over the whole step: every micro-batch divides by the step's total weight."""
    return lambda log_probs: -(log_probs * weights).sum() / total_weight


def to_tensors(batch: Batch, objective: Callable[[Tensor], Objective]) -> MicroBatch:
    """`objective` is built from the weights [B, T]."""
    weights = torch.from_numpy(batch.weights)
    padding = torch.from_numpy(batch.document_ids < 0)
    return MicroBatch(
        input_ids=torch.from_numpy(batch.input_ids),
        targets=torch.from_numpy(batch.targets),
        weights=weights,
        example_ids=torch.from_numpy(batch.example_ids).long(),
        layout=Layout.from_positions(torch.from_numpy(batch.positions).long(), padding),
        objective=objective(weights),
    )


def supervised(batch: Batch, micro_batch_rows: int) -> list[MicroBatch]:
    """A step's batch as micro-batches whose losses add up to the mean over all its counted targets."""
    total = float(batch.weights.sum())
    return [to_tensors(part, lambda weights: cross_entropy(weights, total)) for part in batch.chunks(micro_batch_rows)]
