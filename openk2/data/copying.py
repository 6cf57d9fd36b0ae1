"""Rows of random tokens said twice, which keep a small model able to copy.

What it is: beside text, a few rows a step of which nothing can be guessed but
by finding where the present token stood before. Text alone wears copying heads
off long before it has taught a model of a few million tokens anything that
needs them: what follows a token in text is rarely what followed it last time.
Only the second time counts, from its second token on. Left out: K2 states no
such thing, and its recipe has none.
"""

from __future__ import annotations

import numpy as np

from openk2.data.batch import Batch
from openk2.data.packing import blank_batch

SHORTEST, LONGEST = 3, 48  # tokens of what is said twice


def copying_rows(num_rows: int, sequence_length: int, num_tokens: int, rng: np.random.Generator) -> Batch:
    """`num_rows` rows of `sequence_length`, full of documents of SHORTEST to LONGEST tokens of [0, num_tokens), twice.

    What is left of a row is padding.
    """
    batch = blank_batch(num_rows, sequence_length)
    document = 0
    for row in range(num_rows):
        start = 0
        while (room := (sequence_length - start) // 2) >= SHORTEST:
            length = min(int(rng.integers(SHORTEST, LONGEST + 1)), room)
            middle, end = start + length, start + 2 * length
            batch.input_ids[row, start:end] = np.tile(rng.integers(num_tokens, size=length), 2)
            batch.targets[row, middle : end - 1] = batch.input_ids[row, middle + 1 : end]
            batch.weights[row, middle : end - 1] = 1.0
            batch.document_ids[row, start:end] = document
            batch.positions[row, start:end] = np.arange(2 * length)
            document, start = document + 1, end
    return batch
