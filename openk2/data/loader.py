"""Loaders whose cursor is part of the checkpoint.

Invariants: k batches, `state_dict`, a new loader with `load_state_dict`, and
k more batches are the 2k batches of one loader, at every point, epoch ends
included. An epoch's end is no end: the next epoch begins in the same batch
with a new order. Each epoch holds every document or example exactly once.
Left out: ranks; each process is given the same batches and takes its share of their micro-batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from openk2.data.batch import IGNORE, Batch, concatenate
from openk2.data.packing import PackedExamples, Piece, fill_rows, pack_documents, pack_examples
from openk2.data.prepare import DataTokenizer, load_manifest

Example = tuple[Sequence[int], Sequence[bool] | Sequence[float]]


def _restore(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a cursor into other data, another seed or another row length: it would point elsewhere."""
    for key, value in own.items():
        if state.get(key) != value:
            raise ValueError(
                f"data cursor: saw {key} {state.get(key)!r} in the checkpoint, expected {value!r} as in this run; "
                f"resume with the data and settings the checkpoint was made with"
            )


class PretrainLoader:
    """A continuous stream of prepared documents, all domains mixed, reshuffled every epoch.

    Rows have `sequence_length` tokens and no padding. `epoch` counts from 0, `tokens_seen` is in tokens.
    Raises ValueError where the folder is not prepared data or has no training tokens.
    """

    def __init__(self, folder: Path | str, sequence_length: int, batch_rows: int, seed: int = 0) -> None:
        folder = Path(folder)
        manifest = load_manifest(folder)
        self.sequence_length, self.batch_rows, self.seed = sequence_length, batch_rows, seed
        self.epoch, self.tokens_seen = 0, 0
        self._digest = manifest.content_digest("train")
        self._shards = [_open_shard(folder, "train", domain) for domain in manifest.domains]
        self._documents = [
            (shard, int(start), int(end))
            for shard, (_, offsets) in enumerate(self._shards)
            for start, end in pairwise(offsets)
            if end > start
        ]
        if not self._documents:
            raise ValueError(f"data: saw no training tokens in {folder}, expected some; prepare it again")
        self._next_document = 0  # in this epoch's order
        self._next_token = 0  # in that document
        self._order = self._shuffled(0)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self._documents))

    def next_batch(self, num_rows: int | None = None) -> Batch:
        """The next rows, `batch_rows` of them where no other number is given: [num_rows, sequence_length]."""
        rows = [self._next_row() for _ in range(self.batch_rows if num_rows is None else num_rows)]
        self.tokens_seen += len(rows) * self.sequence_length
        return fill_rows(rows, self.sequence_length)

    def _next_row(self) -> list[Piece]:
        row: list[Piece] = []
        room = self.sequence_length
        while room:
            shard, start, end = self._documents[self._order[self._next_document]]
            tokens = self._shards[shard][0]
            begin = start + self._next_token
            stop = min(begin + room, end)
            row.append(Piece(tokens[begin:stop].astype(np.int64), int(tokens[stop]) if stop < end else None))
            room -= stop - begin
            self._next_token += stop - begin
            if stop == end:
                self._advance()
        return row

    def _advance(self) -> None:
        self._next_document, self._next_token = self._next_document + 1, 0
        if self._next_document == len(self._documents):
            self.epoch, self._next_document = self.epoch + 1, 0
            self._order = self._shuffled(self.epoch)

    def state_dict(self) -> dict[str, Any]:
        """The cursor: plain integers and strings, fit for JSON."""
        return {
            "digest": self._digest,
            "seed": self.seed,
            "epoch": self.epoch,
            "next_document": self._next_document,
            "next_token": self._next_token,
            "tokens_seen": self.tokens_seen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the cursor stands. Raises ValueError for a cursor into other data."""
        _restore(state, {"digest": self._digest, "seed": self.seed})
        self.epoch, self.tokens_seen = int(state["epoch"]), int(state["tokens_seen"])
        self._next_document, self._next_token = int(state["next_document"]), int(state["next_token"])
        self._order = self._shuffled(self.epoch)


class ExampleLoader:
    """Packed examples (ids, mask), never cut; packed anew in another order every epoch.

    `too_long` and `without_loss` are the indices of examples left out.
    Raises ValueError where none fits.
    """

    def __init__(
        self, examples: Sequence[Example], sequence_length: int, batch_rows: int, seed: int = 0, pad_id: int = 0
    ) -> None:
        self.sequence_length, self.batch_rows, self.seed, self.pad_id = sequence_length, batch_rows, seed, pad_id
        self.epoch, self.tokens_seen = 0, 0
        self._examples = examples
        self._digest = _examples_digest(examples)
        self._next_row = 0
        self._packed = self._pack(0)
        self.too_long, self.without_loss = self._packed.too_long, self._packed.without_loss
        if not self._packed.batch.num_rows:
            raise ValueError(
                f"examples: saw {len(examples)}, of which {len(self.too_long)} are longer than {sequence_length} "
                f"tokens and {len(self.without_loss)} have no token to learn; expected at least one that fits "
                "(--train.sequence_length says how long)"
            )

    @property
    def rows_per_epoch(self) -> int:
        """Rows of the current epoch's packing."""
        return self._packed.batch.num_rows

    @property
    def fill(self) -> float:
        """Share of the positions that hold a token, in the current epoch's packing."""
        return self._packed.fill

    def _pack(self, epoch: int) -> PackedExamples:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self._examples))
        packed = pack_examples(self._examples, self.sequence_length, self.pad_id, order)
        rows = rng.permutation(packed.batch.num_rows)
        return PackedExamples(packed.batch.take(rows), packed.too_long, packed.without_loss)

    def next_batch(self) -> Batch:
        """The next `batch_rows` rows, [batch_rows, sequence_length]."""
        parts, wanted = [], self.batch_rows
        while wanted:
            stop = min(self._next_row + wanted, self.rows_per_epoch)
            parts.append(self._packed.batch.take(np.arange(self._next_row, stop)))
            wanted -= stop - self._next_row
            self._next_row = stop
            if stop == self.rows_per_epoch:
                self.epoch, self._next_row = self.epoch + 1, 0
                self._packed = self._pack(self.epoch)
        batch = concatenate(parts)
        self.tokens_seen += int(np.count_nonzero(batch.document_ids >= 0))
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The cursor: plain integers and strings, fit for JSON."""
        return {
            "digest": self._digest,
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "epoch": self.epoch,
            "next_row": self._next_row,
            "tokens_seen": self.tokens_seen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the cursor stands. Raises ValueError for a cursor into other examples."""
        _restore(state, {"digest": self._digest, "seed": self.seed, "sequence_length": self.sequence_length})
        self.epoch, self.tokens_seen = int(state["epoch"]), int(state["tokens_seen"])
        self._next_row = int(state["next_row"])
        self._packed = self._pack(self.epoch)


def _open_shard(folder: Path, side: str, domain: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, offsets) of one domain; tokens stay on disk until they are read."""
    try:
        tokens = np.load(folder / side / f"{domain}.npy", mmap_mode="r", allow_pickle=False)
        offsets = np.load(folder / side / f"{domain}.offsets.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"data: saw no readable {side} shard of {domain} in {folder} ({type(error).__name__}), "
            f"expected one; delete the folder and prepare it again"
        ) from None
    if int(offsets[-1]) != len(tokens):
        raise ValueError(
            f"data: saw {len(tokens)} tokens in {side}/{domain} of {folder}, expected {int(offsets[-1])}; "
            f"delete the folder and prepare it again"
        )
    return tokens, offsets


def _examples_digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for ids, mask in examples:
        digest.update(np.asarray(ids, np.int64).tobytes() + np.asarray(mask, np.float32).tobytes() + b"|")
    return digest.hexdigest()


def validation_batches(
    folder: Path | str, domain: str, sequence_length: int, batch_rows: int, max_rows: int | None = None
) -> Iterator[Batch]:
    """One domain's held-out documents in order, for bits per byte.

    The end-of-document token is no text and has no target, so the targets are exactly the tokens of
    `validation/<domain>.txt`: summed loss / (ln 2 * `val_bytes` of the manifest) is bits per byte. With
    `max_rows`, only the first rows; the bytes are then those that their targets spell.
    Raises ValueError for an unknown domain.
    """
    manifest = load_manifest(folder)
    if domain not in manifest.validation_domains:
        raise ValueError(
            f"data: saw validation domain {domain!r}, expected one of {', '.join(manifest.validation_domains)}"
        )
    tokens, offsets = _open_shard(Path(folder), "validation", domain)
    documents = [tokens[start:end] for start, end in pairwise(offsets)]
    batch = pack_documents(documents, sequence_length, pad_id=manifest.eos_id)
    end = batch.targets == manifest.eos_id
    batch.targets[end] = IGNORE
    batch.weights[end] = 0.0
    if max_rows is not None:
        batch = batch.take(np.arange(min(max_rows, batch.num_rows)))
    yield from batch.chunks(batch_rows)


def validation_texts(folder: Path | str, tokenizer: DataTokenizer) -> dict[str, list[str]]:
    """The held-out documents of each domain as text (prepared tokens spell it byte for byte)."""
    manifest = load_manifest(folder)
    texts: dict[str, list[str]] = {}
    for domain in manifest.validation_domains:
        tokens, offsets = _open_shard(Path(folder), "validation", domain)
        documents = (tokens[start + 1 : end - 1] for start, end in zip(offsets[:-1], offsets[1:], strict=True))
        texts[domain] = [b"".join(map(tokenizer.token_bytes, document.tolist())).decode() for document in documents]
    return texts
