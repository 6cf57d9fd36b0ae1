"""The prepared folder: whole or absent, used again only when nothing changed, both sides apart."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openk2.config.run import DataConfig
from openk2.data import prepare as prepare_module
from openk2.data.corpus import _sample, build_corpus, training_texts
from openk2.data.dedup import find_leaks
from openk2.data.prepare import load_manifest, prepare
from openk2.data.sources import Document

from .conftest import ByteTokenizer, prose


@pytest.fixture
def config(text_folder: Path) -> DataConfig:
    return DataConfig(path=str(text_folder))


def test_shards_hold_the_corpus_and_the_manifest_counts_it(config: DataConfig, tmp_path: Path, tokenizer) -> None:
    out = tmp_path / "out"
    manifest = prepare(config, tokenizer, out)
    assert manifest == load_manifest(out) and manifest.dtype == "uint16"
    corpus = build_corpus(config)
    for domain, documents in corpus.training.items():
        tokens, offsets = np.load(out / f"train/{domain}.npy"), np.load(out / f"train/{domain}.offsets.npy")
        for document, start, end in zip(documents, offsets[:-1], offsets[1:], strict=True):
            assert tokens[start] == tokenizer.bos_id and tokens[end - 1] == tokenizer.eos_id
            assert bytes((tokens[start + 1 : end - 1] - 2).tolist()) == document.text.encode()
        counts = manifest.domains[domain]
        assert counts["train_tokens"] == len(tokens) == counts["train_bytes"] + 2 * counts["train_documents"]
    assert manifest.train_tokens == sum(counts["train_tokens"] for counts in manifest.domains.values())


def test_it_is_made_once_and_again_when_something_changed(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    write = prepare_module._write
    monkeypatch.setattr(prepare_module, "_write", lambda *arguments: made.append(1) or write(*arguments))
    out = tmp_path / "out"
    first = prepare(config, ByteTokenizer(), out)
    assert prepare(config, ByteTokenizer(), out) == first and len(made) == 1
    prepare(config, ByteTokenizer("other"), out)
    assert len(made) == 2
    prepare(replace(config, val_bytes=300), ByteTokenizer("other"), out)
    assert len(made) == 3
    shard = out / "train" / "notes.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    prepare(replace(config, val_bytes=300), ByteTokenizer("other"), out)
    assert len(made) == 4
    (Path(str(config.path)) / "new.txt").write_text(prose(77))
    prepare(replace(config, val_bytes=300), ByteTokenizer("other"), out)
    assert len(made) == 5


def test_a_touched_file_leaves_the_content_digest(config: DataConfig, tmp_path: Path, tokenizer) -> None:
    before = prepare(config, tokenizer, tmp_path / "out")
    os.utime(next(Path(str(config.path)).rglob("*.txt")), (1, 1))
    after = prepare(config, tokenizer, tmp_path / "out")
    assert after.digest != before.digest and after.content_digest("train") == before.content_digest("train")


def test_a_failure_leaves_the_old_folder_whole(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = prepare(config, ByteTokenizer(), out)

    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "write_atomic", full_disk)
        with pytest.raises(OSError, match="No space"):
            prepare(config, ByteTokenizer("other"), out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "texts"]
    assert prepare(config, ByteTokenizer(), out) == first


def test_a_folder_with_other_things_is_left_alone(config: DataConfig, tmp_path: Path, tokenizer) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="other things"):
        prepare(config, tokenizer, out)
    (out / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(ValueError, match="expected prepared data"):
        prepare(config, tokenizer, out)
    assert (out / "thesis.txt").read_text() == "mine"


def test_a_tokenizer_that_loses_bytes_is_refused(config: DataConfig, tmp_path: Path) -> None:
    class Lowering(ByteTokenizer):
        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            return super().encode_batch([text.replace("a", "") for text in texts])

    with pytest.raises(ValueError, match="expected the same; use a byte-level tokenizer"):
        prepare(config, Lowering(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_training_text_repeats_validation_text(config: DataConfig) -> None:
    root = Path(str(config.path))
    for index in range(12):  # each text once more inside a longer one
        original = (root / "notes" / f"{index}.txt").read_text()
        (root / "letters" / f"copy{index}.txt").write_text(prose(500 + index, 900) + original + prose(600 + index, 900))
    corpus = build_corpus(config)
    training = list(training_texts(config, corpus))
    validation = [document.text for documents in corpus.validation.values() for document in documents]
    assert find_leaks(training, validation) == []
    assert sum(counts.leaks for counts in corpus.counts.values()) > 0


def test_counts_add_up(config: DataConfig) -> None:
    root = Path(str(config.path))
    (root / "notes" / "again.txt").write_text((root / "notes" / "3.txt").read_text())
    corpus = build_corpus(config)
    notes = corpus.counts["notes"]
    assert notes.read_documents == 13 and notes.exact_duplicates == 1
    assert notes.duplicate_bytes == len((root / "notes" / "3.txt").read_text())
    for counts in corpus.counts.values():
        assert counts.train_bytes == counts.train_available_bytes
        assert counts.train_bytes + counts.val_bytes + counts.duplicate_bytes <= counts.read_bytes


def test_the_budget_is_kept_by_whole_documents_drawn_by_seed(config: DataConfig) -> None:
    small = replace(config, max_bytes=4_000)
    drawn = list(training_texts(small))
    assert 0 < sum(len(text.encode()) for text in drawn) <= 4_000
    everything = set(training_texts(config))
    assert set(drawn) < everything
    assert drawn == list(training_texts(small)) != list(training_texts(replace(small, seed=1)))


def test_code_takes_its_share_and_prose_the_rest() -> None:
    documents = [Document("x" * 100, domain, str(i)) for domain in ("code", "prose") for i in range(50)]
    sampled = _sample(documents, DataConfig(max_bytes=4_000, code_fraction=0.25))
    assert sum(document.domain == "code" for document in sampled) == 10
    assert sum(document.domain == "prose" for document in sampled) == 30


def test_too_little_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ValueError, match="saw 5 bytes of text in 1 documents, too little"):
        build_corpus(DataConfig(path=str(tmp_path)))


def test_one_long_file_is_enough(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 2_000))
    corpus = build_corpus(DataConfig(path=str(tmp_path)))
    assert corpus.counts["text"].val_bytes == len(prose(1, 2_000)) // 10
