"""Packing: documents or examples into rows of `sequence_length` tokens.

Two ways. A stream (pre-training): documents follow each other without padding;
one that does not fit is continued in the next row under a new document id, and
the last position of a row still predicts the continuation's first token, so
every token but a document's first is predicted exactly once. Whole examples
(SFT, RL): never cut, best-fit decreasing; what is too long is dropped and named.
Left out: attention itself; it must stay within a document id.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from openk2.data.batch import IGNORE, Batch


@dataclass(frozen=True, eq=False)
class Piece:
    """A run of one document's tokens, and the token after it (None at the document's end)."""

    tokens: np.ndarray
    following: int | None


def blank_batch(num_rows: int, sequence_length: int, pad_id: int = 0) -> Batch:
    """A batch of padding only, to be filled row by row."""
    shape = (num_rows, sequence_length)
    return Batch(
        input_ids=np.full(shape, pad_id, np.int64),
        targets=np.full(shape, IGNORE, np.int64),
        document_ids=np.full(shape, -1, np.int32),
        positions=np.zeros(shape, np.int32),
        weights=np.zeros(shape, np.float32),
        example_ids=np.full(shape, -1, np.int32),
    )


def cut_pieces(documents: Iterable[Sequence[int] | np.ndarray], sequence_length: int) -> Iterator[list[Piece]]:
    """Rows of a continuous stream: each a list of pieces whose lengths add up to `sequence_length`.

    Only the last row may be shorter. Empty documents are passed over.
    """
    row: list[Piece] = []
    room = sequence_length
    for document in documents:
        tokens = np.asarray(document, dtype=np.int64)
        start = 0
        while start < len(tokens):
            end = min(start + room, len(tokens))
            row.append(Piece(tokens[start:end], int(tokens[end]) if end < len(tokens) else None))
            room -= end - start
            start = end
            if room == 0:
                yield row
                row, room = [], sequence_length
    if row:
        yield row


def fill_rows(rows: Sequence[Sequence[Piece]], sequence_length: int, pad_id: int = 0) -> Batch:
    """The batch [len(rows), sequence_length] that these rows of pieces make."""
    batch = blank_batch(len(rows), sequence_length, pad_id)
    document = 0
    for index, row in enumerate(rows):
        start = 0
        for piece in row:
            length = len(piece.tokens)
            span = slice(start, start + length)
            batch.input_ids[index, span] = piece.tokens
            batch.targets[index, start : start + length - 1] = piece.tokens[1:]
            if piece.following is not None:
                batch.targets[index, start + length - 1] = piece.following
            batch.document_ids[index, span] = document
            batch.positions[index, span] = np.arange(length, dtype=np.int32)
            document += 1
            start += length
    np.not_equal(batch.targets, IGNORE, out=batch.weights, casting="unsafe")
    return batch


def pack_documents(documents: Iterable[Sequence[int] | np.ndarray], sequence_length: int, pad_id: int = 0) -> Batch:
    """All documents as one continuous stream; only the end of the last row is padding."""
    return fill_rows(list(cut_pieces(documents, sequence_length)), sequence_length, pad_id)


@dataclass(frozen=True, eq=False)
class PackedExamples:
    """`batch` holds every example kept, whole; the others are named by their index."""

    batch: Batch
    too_long: tuple[int, ...]
    without_loss: tuple[int, ...]

    @property
    def fill(self) -> float:
        """Share of the positions that hold an example's token."""
        return float(np.mean(self.batch.document_ids >= 0)) if self.batch.num_rows else 0.0


def pack_examples(
    examples: Sequence[tuple[Sequence[int], Sequence[bool] | Sequence[float]]],
    sequence_length: int,
    pad_id: int = 0,
    order: Sequence[int] | np.ndarray | None = None,
) -> PackedExamples:
    """Whole examples into rows, best-fit decreasing.

    An example is (ids, mask): `mask[t]` says whether token t is to be learned,
    as a bool or as a float weight (0 is no loss). The target at position t is
    ids[t+1], counted only where mask[t+1] is; the first token is never a target.
    `order` is the order in which examples of one length are placed.
    Raises ValueError where ids and mask differ in length.
    """
    masks = [np.asarray(mask, dtype=np.float32) for _, mask in examples]
    too_long, without_loss, kept = [], [], []
    for index in range(len(examples)) if order is None else order:
        length = len(examples[index][0])
        if len(masks[index]) != length:
            raise ValueError(
                f"example {index}: saw {length} ids and {len(masks[index])} mask values, expected one for each"
            )
        if length > sequence_length:
            too_long.append(int(index))
        elif not masks[index][1:].any():
            without_loss.append(int(index))
        else:
            kept.append(int(index))
    rows = _best_fit([(index, len(examples[index][0])) for index in kept], sequence_length)
    batch = blank_batch(len(rows), sequence_length, pad_id)
    document = 0
    for row, members in enumerate(rows):
        start = 0
        for index in members:
            _place(batch, row, start, np.asarray(examples[index][0], np.int64), masks[index])
            span = slice(start, start + len(masks[index]))
            batch.document_ids[row, span] = document
            batch.example_ids[row, span] = index
            document += 1
            start = span.stop
    return PackedExamples(batch, tuple(sorted(too_long)), tuple(sorted(without_loss)))


def _place(batch: Batch, row: int, start: int, ids: np.ndarray, weights: np.ndarray) -> None:
    """Write one example at `start`: targets and weights are those of the next token."""
    length = len(ids)
    batch.input_ids[row, start : start + length] = ids
    batch.positions[row, start : start + length] = np.arange(length, dtype=np.int32)
    before_next = slice(start, start + length - 1)
    batch.targets[row, before_next] = np.where(weights[1:] != 0, ids[1:], IGNORE)
    batch.weights[row, before_next] = weights[1:]


def _best_fit(items: Sequence[tuple[int, int]], capacity: int) -> list[list[int]]:
    """Bins of item keys: longest first, each into the fullest bin that still has room."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # sorted (free tokens, bin)
    for key, length in sorted(items, key=lambda item: -item[1]):
        at = bisect_left(room, (length, -1))
        if at == len(room):
            free, index = capacity, len(bins)
            bins.append([])
        else:
            free, index = room.pop(at)
        bins[index].append(key)
        insort(room, (free - length, index))
    return bins
