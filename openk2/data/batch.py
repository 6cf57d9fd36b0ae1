"""The batch: what the training loop is handed, as numpy arrays.

Invariants: all arrays are [B, T]. `targets[b, t]` is the token that position t
should predict, or `IGNORE`; it always lies in the same document as the input
token. Document ids run 0, 1, 2, ... over the flattened batch and never span two
rows, so per-document sums may run over the flat arrays; padding has document
id -1 and position 0, and must be left out of expert loads.
Left out: anything of torch; the step turns the arrays into tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

IGNORE = -100  # a target without loss; torch's cross_entropy skips it by default


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of packed documents or examples.

    input_ids    [B, T] int64
    targets      [B, T] int64, IGNORE where there is no loss
    document_ids [B, T] int32, attention stays within one id; -1 is padding
    positions    [B, T] int32, from 0 in each document id
    weights      [B, T] float32, of each target; 0 exactly where the target is IGNORE
    example_ids  [B, T] int32, index of the packed example (-1: padding, or pre-training text)
    """

    input_ids: np.ndarray
    targets: np.ndarray
    document_ids: np.ndarray
    positions: np.ndarray
    weights: np.ndarray
    example_ids: np.ndarray

    @property
    def num_loss_tokens(self) -> int:
        """Targets that count."""
        return int(np.count_nonzero(self.targets != IGNORE))

    @property
    def num_rows(self) -> int:
        return int(self.input_ids.shape[0])

    def take(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """The given rows, in that order, with document ids counted anew."""
        index = np.asarray(rows, dtype=np.int64)
        arrays = {name: getattr(self, name)[index] for name in FIELDS}
        return Batch(**arrays | {"document_ids": _renumbered(arrays["document_ids"])})

    def chunks(self, batch_rows: int) -> Iterator[Batch]:
        """All rows in order, `batch_rows` at a time; the last batch may have fewer."""
        for start in range(0, self.num_rows, batch_rows):
            yield self.take(np.arange(start, min(start + batch_rows, self.num_rows)))


FIELDS = ("input_ids", "targets", "document_ids", "positions", "weights", "example_ids")


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Rows of all batches as one, with document ids counted anew."""
    arrays = {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in FIELDS}
    return Batch(**arrays | {"document_ids": _renumbered(arrays["document_ids"])})


def _renumbered(document_ids: np.ndarray) -> np.ndarray:
    """Ids 0, 1, 2, ... in order of appearance; a new one begins at each row and wherever the id changes."""
    begins = np.ones(document_ids.shape, dtype=bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    begins &= document_ids >= 0
    counted = np.cumsum(begins, dtype=np.int32).reshape(document_ids.shape) - 1
    return np.where(document_ids >= 0, counted, -1).astype(np.int32)
