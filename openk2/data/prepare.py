"""Token shards on disk: written once per config and tokenizer, then only read.

A folder holds, for `train` and `validation`, `<domain>.npy` (all documents'
ids, one after the other) and `<domain>.offsets.npy` (where each begins, and
the end), the validation text as `validation/<domain>.txt` (for xz and bits per
byte), and `manifest.json`. Each document is [BOS] text [EOS]: with a BOS every
byte of text is predicted, so bits per byte leave nothing out, and the base
model can be sampled from nothing; text that looks like a control token stays
text. Invariants: the folder is whole or absent; it is used again only if its
config, sources, tokenizer and hashes match. Left out: remote storage.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from openk2.config.run import DataConfig
from openk2.data.corpus import Corpus, build_corpus
from openk2.data.sources import Document, fingerprint, licences
from openk2.observe.files import sync_folder, write_atomic

FORMAT = 1
BATCH_DOCUMENTS = 64


class DataTokenizer(Protocol):
    """What preparing needs of a tokenizer; ids of plain text are never control tokens."""

    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...
    def token_bytes(self, token_id: int) -> bytes: ...
    def digest(self) -> str: ...


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds. `domains[name]` are corpus counts plus tokens of both sides."""

    format: int
    digest: str  # of config, sources and tokenizer: what the folder was made from
    tokenizer_digest: str
    vocab_size: int
    bos_id: int
    eos_id: int
    dtype: str
    config: dict[str, Any]
    licences: dict[str, str]
    skipped: dict[str, int]
    domains: dict[str, dict[str, int]]
    files: dict[str, str]  # sha256 by relative path

    @property
    def train_tokens(self) -> int:
        return sum(domain["train_tokens"] for domain in self.domains.values())

    def content_digest(self, side: str) -> str:
        """Hash of the tokens of "train" or "validation": the same for the same text, wherever it was read."""
        parts = [f"{name} {digest}" for name, digest in sorted(self.files.items()) if name.startswith(f"{side}/")]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def validation_domains(self) -> list[str]:
        """Domains with held-out text."""
        return [name for name, domain in self.domains.items() if domain["val_bytes"]]


def load_manifest(folder: Path | str) -> Manifest:
    """Read a prepared folder's manifest. Raises ValueError where there is none or it is not one of ours."""
    path = Path(folder) / "manifest.json"
    try:
        manifest = Manifest(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"data: saw no readable {path} ({type(error).__name__}), expected prepared data") from None
    if manifest.format != FORMAT:
        raise ValueError(f"data: saw {path} in format {manifest.format}, expected {FORMAT}; delete the folder")
    return manifest


def prepare(
    config: DataConfig,
    tokenizer: DataTokenizer,
    out: Path | str,
    progress: Callable[[str], None] | None = None,
    corpus: Corpus | None = None,
) -> Manifest:
    """Make `out` hold the tokens of `config`'s text, or find that it does.

    `corpus` spares reading it again where the caller has built it (for training the tokenizer).
    Raises ValueError for unusable data, a tokenizer that loses bytes, or an `out` that holds other things.
    """
    out = Path(out)
    say = progress or (lambda message: None)
    digest = _digest(config, tokenizer)
    found = _reusable(out, digest)
    if found is not None:
        say(f"prepared data in {out} is up to date")
        return found
    corpus = corpus or build_corpus(config, progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    for stale in out.parent.glob(f".{out.name}.*.tmp"):
        shutil.rmtree(stale)
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        manifest = _write(config, tokenizer, corpus, aside, digest, say)
        _swap(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return manifest


def _digest(config: DataConfig, tokenizer: DataTokenizer) -> str:
    # The path itself is left out: the same files moved elsewhere are the same data.
    settings = asdict(config) | {"path": config.path is not None}
    facts = [FORMAT, settings, fingerprint(config.path, config.sources), tokenizer.digest()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _reusable(out: Path, digest: str) -> Manifest | None:
    """The manifest of `out` if it is what would be written; None if it is ours but stale, or absent."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / "manifest.json").is_file():
        raise ValueError(f"data: saw {out} with other things in it, expected prepared data or nothing; choose another")
    manifest = load_manifest(out)
    if manifest.digest != digest:
        return None
    for name, expected in manifest.files.items():
        file = out / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            return None
    return manifest


def _write(
    config: DataConfig,
    tokenizer: DataTokenizer,
    corpus: Corpus,
    folder: Path,
    digest: str,
    say: Callable[[str], None],
) -> Manifest:
    """All shards and the manifest into `folder`, flushed."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    files: dict[str, str] = {}

    def put(name: str, content: bytes) -> None:
        write_atomic(folder / name, content)
        files[name] = hashlib.sha256(content).hexdigest()

    domains: dict[str, dict[str, int]] = {}
    for side in ("train", "validation"):
        (folder / side).mkdir(parents=True)
    for domain, counts in corpus.counts.items():
        say(f"tokenising {domain}")
        domains[domain] = asdict(counts)
        for side, documents in (("train", corpus.training[domain]), ("validation", corpus.validation[domain])):
            tokens, offsets = tokenise(documents, tokenizer, dtype)
            if side == "validation":
                _check_lossless(documents, tokens, tokenizer)
                put(f"validation/{domain}.txt", "".join(d.text for d in documents).encode())
            put(f"{side}/{domain}.npy", _npy(tokens))
            put(f"{side}/{domain}.offsets.npy", _npy(offsets))
            domains[domain]["train_tokens" if side == "train" else "val_tokens"] = len(tokens)
    manifest = Manifest(
        format=FORMAT,
        digest=digest,
        tokenizer_digest=tokenizer.digest(),
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        dtype=dtype.name,
        config=asdict(config),
        licences=licences(config.path, config.sources),
        skipped=corpus.skipped,
        domains=domains,
        files=files,
    )
    write_atomic(folder / "manifest.json", json.dumps(asdict(manifest), indent=2) + "\n")
    # Read back, so that a fresh manifest and a reloaded one are equal (JSON has no tuples).
    return load_manifest(folder)


def tokenise(
    documents: Sequence[Document], tokenizer: DataTokenizer, dtype: np.dtype[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Flat ids of [BOS] text [EOS] for each document, and the [D + 1] int64 offsets between them."""
    parts: list[np.ndarray] = []
    for start in range(0, len(documents), BATCH_DOCUMENTS):
        texts = [document.text for document in documents[start : start + BATCH_DOCUMENTS]]
        for ids in tokenizer.encode_batch(texts):
            parts.append(np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], dtype=dtype))
    offsets = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
    return (np.concatenate(parts) if parts else np.zeros(0, dtype)), offsets


def _check_lossless(documents: Sequence[Document], tokens: np.ndarray, tokenizer: DataTokenizer) -> None:
    """Bits per byte mean something only if the tokens spell the text exactly."""
    control = (tokenizer.bos_id, tokenizer.eos_id)
    spelt = b"".join(tokenizer.token_bytes(int(token)) for token in tokens if token not in control)
    expected = "".join(document.text for document in documents).encode()
    if spelt != expected:
        raise ValueError(
            f"tokenizer: saw validation text of {len(expected):,} bytes come back as {len(spelt):,} other bytes, "
            f"expected the same; use a byte-level tokenizer without normalisation"
        )


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _swap(aside: Path, out: Path) -> None:
    """Put the finished folder in place. A crash in between leaves no `out`, which is made again."""
    if out.exists():
        old = aside.with_name(re.sub(r"\.tmp$", ".old.tmp", aside.name))
        os.replace(out, old)
        os.replace(aside, out)
        shutil.rmtree(old)
    else:
        os.replace(aside, out)
    sync_folder(out.parent)
