"""The cursor: stopping and going on is the same as never stopping, at epoch ends too."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from openk2.config.run import DataConfig
from openk2.data.batch import FIELDS, IGNORE, Batch
from openk2.data.loader import ExampleLoader, PretrainLoader, validation_batches
from openk2.data.prepare import load_manifest, prepare


@pytest.fixture
def folder(text_folder: Path, tmp_path: Path, tokenizer) -> Path:
    prepare(DataConfig(path=str(text_folder)), tokenizer, tmp_path / "prepared")
    return tmp_path / "prepared"


def same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


def examples(count: int = 23) -> list[tuple[list[int], list[bool]]]:
    rng = np.random.default_rng(5)
    lengths = rng.integers(3, 30, count)
    return [([1000 + i] * int(n), [False] + [True] * (int(n) - 1)) for i, n in enumerate(lengths)]


def make(kind: str, folder: Path):
    if kind == "pretrain":
        return PretrainLoader(folder, 96, 5, seed=3)
    return ExampleLoader(examples(), 32, 3, seed=3)


@pytest.mark.parametrize("kind", ["pretrain", "examples"])
def test_every_stop_resumes_exactly(kind: str, folder: Path) -> None:
    loader = make(kind, folder)
    batches, states = [], []
    while loader.epoch < 3:
        states.append(json.dumps(loader.state_dict()))
        batches.append(loader.next_batch())
    assert len(batches) > 10
    for stop in range(len(batches)):
        resumed = make(kind, folder)
        resumed.load_state_dict(json.loads(states[stop]))
        for batch in batches[stop : stop + 4]:
            assert same(resumed.next_batch(), batch), f"{kind}: differs after a stop at batch {stop}"
    assert resumed.state_dict() == loader.state_dict()


def test_an_epoch_holds_every_token_once_and_the_next_is_reshuffled(folder: Path) -> None:
    manifest = load_manifest(folder)
    loader = PretrainLoader(folder, 1, 1, seed=0)
    epochs: list[list[int]] = [[], []]
    for _ in range(2 * manifest.train_tokens):
        epoch = loader.epoch
        epochs[epoch].append(int(loader.next_batch().input_ids[0, 0]))
    assert loader.tokens_seen == 2 * manifest.train_tokens and loader.epoch == 2
    stored = [np.load(folder / "train" / f"{domain}.npy") for domain in manifest.domains]
    assert Counter(epochs[0]) == Counter(epochs[1]) == Counter(np.concatenate(stored).tolist())
    assert epochs[0] != epochs[1]


def test_rows_are_full_and_each_document_begins_with_bos(folder: Path) -> None:
    loader = PretrainLoader(folder, 64, 8, seed=1)
    for _ in range(10):
        batch = loader.next_batch()
        assert (batch.document_ids >= 0).all()
        begins = (batch.positions == 0) & (np.arange(64) > 0)
        assert (batch.input_ids[begins] == 0).all()
        assert (batch.targets != 0).all(), "BOS is never a target"


def test_pretraining_mixes_domains(folder: Path) -> None:
    loader = PretrainLoader(folder, 64, 1, seed=1)
    shards = [loader._documents[index][0] for index in loader._order]
    assert shards != sorted(shards)


def test_a_cursor_into_other_data_is_refused(folder: Path) -> None:
    state = PretrainLoader(folder, 64, 2, seed=0).state_dict()
    with pytest.raises(ValueError, match="data cursor: saw seed 0"):
        PretrainLoader(folder, 64, 2, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="data cursor: saw digest"):
        PretrainLoader(folder, 64, 2, seed=0).load_state_dict({**state, "digest": "other"})


def test_examples_each_come_once_an_epoch(folder: Path) -> None:
    loader = ExampleLoader(examples(), 32, 2, seed=0)
    seen: Counter[int] = Counter()
    while loader.epoch == 0:
        batch = loader.next_batch()
        starts = (batch.positions == 0) & (batch.document_ids >= 0)
        seen.update(batch.example_ids[starts].tolist())
    assert set(seen) == set(range(23))
    assert sum(seen.values()) <= 23 + 8, "at most one batch reaches into the next epoch"


def test_examples_are_packed_anew_each_epoch() -> None:
    loader = ExampleLoader([([i] * 8, [True] * 8) for i in range(1, 41)], 16, 1, seed=0)
    epochs: list[list[list[int]]] = [[], []]
    while loader.epoch < 2:
        epoch = loader.epoch
        epochs[epoch].append(loader.next_batch().input_ids[0].tolist())
    assert {token for row in epochs[0] for token in row} == {token for row in epochs[1] for token in row}
    pairs = [{frozenset(row) for row in rows} for rows in epochs]
    assert pairs[0] != pairs[1], "the same examples share rows"


def test_examples_that_cannot_be_learned_are_named() -> None:
    loader = ExampleLoader([([1] * 40, [True] * 40), ([1, 2], [True, False]), ([1, 2], [False, True])], 16, 1)
    assert loader.too_long == (0,) and loader.without_loss == (1,)
    with pytest.raises(ValueError, match="1 are longer than 16 tokens"):
        ExampleLoader([([1] * 40, [True] * 40)], 16, 1)


@pytest.mark.parametrize("length", [7, 64, 10_000])
def test_validation_targets_spell_the_held_out_text(folder: Path, tokenizer, length: int) -> None:
    for domain in load_manifest(folder).validation_domains:
        text = (folder / "validation" / f"{domain}.txt").read_bytes()
        targets = np.concatenate([b.targets.ravel() for b in validation_batches(folder, domain, length, 3)])
        assert b"".join(tokenizer.token_bytes(int(t)) for t in targets[targets != IGNORE]) == text
        assert load_manifest(folder).domains[domain]["val_bytes"] == len(text)


def test_a_damaged_shard_is_named(folder: Path) -> None:
    shard = folder / "train" / "notes.npy"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match="train shard of notes"):
        PretrainLoader(folder, 64, 2)
    with pytest.raises(ValueError, match="saw validation domain 'prose', expected one of letters, notes"):
        next(validation_batches(folder, "prose", 64, 2))
