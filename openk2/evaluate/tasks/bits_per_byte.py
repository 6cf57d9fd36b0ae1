"""Validation bits per byte by domain, beside `xz -9e` on the same bytes.

bpb = sum over all tokens of -log2 p(token | what precedes it in its document) / bytes of the text.

Invariants: every token, and so every byte, is scored exactly once; a document
sees only itself, after [BOS]; a document longer than the context is scored in
windows that overlap, so that no token but the first ones lacks context. The
figure does not depend on the vocabulary. The end of a document is not paid
for, and neither is it by xz, which compresses the documents end to end.

Leaves out: any cost of the model itself; this is a measure of prediction.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from openk2.evaluate.dataset_files import read_jsonl, subset, text_field
from openk2.evaluate.records import Advance, EvalSettings, Record, Result, TextCodec, prompts_sha256
from openk2.evaluate.statistics import Estimate, finite, mean, ratio
from openk2.protocols import Generate, Score

FOLDER = "validation"


@dataclass(frozen=True, slots=True)
class Document:
    """A whole held-out document."""

    id: str
    domain: str
    text: str


@dataclass(frozen=True, slots=True)
class Window:
    """A sequence to score: of its log-probabilities only the last `num_counted` belong to the figure."""

    document: int
    ids: tuple[int, ...]
    num_counted: int


def windows(ids: Sequence[int], context_length: int, stride: int, document: int = 0) -> list[Window]:
    """Cut [BOS] + document into windows of at most `context_length` that count each token after [BOS] once.

    The first window counts all that it predicts; each later one ends up to `stride` tokens further
    and counts only those, with `context_length - stride` tokens or more before them.
    """
    if not 1 <= stride < context_length:
        raise ValueError(f"bits_per_byte stride: saw {stride}, expected 1 to {context_length - 1} (below the context)")
    end = min(len(ids), context_length)
    cut = [Window(document, tuple(ids[:end]), end - 1)] if end > 1 else []
    while end < len(ids):
        counted = min(stride, len(ids) - end)
        end += counted
        cut.append(Window(document, tuple(ids[end - context_length : end]), counted))
    return cut


def xz_bytes(texts: Sequence[str]) -> int:
    """Size of the texts, end to end, under `xz -9e` (one .xz stream, 64 MiB dictionary)."""
    data = "".join(texts).encode()
    return len(lzma.compress(data, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME))


@dataclass(frozen=True)
class BitsPerByte:
    """`texts` are the documents by domain; without them they are read from DATA/validation.

    There, each NAME.txt is a domain of one document and each NAME.jsonl a domain of `{"text": ...}` lines.
    """

    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    context_length: int | None = None  # tokens of a window; None: the settings' (a model may be best at less)
    stride: int | None = None  # tokens; None: half the context
    name: str = "bits_per_byte"

    def load(self, data: Path | None, limit: int | None, seed: int) -> list[Document]:
        """All documents; `limit` holds per domain."""
        texts = self.texts or _read_folder(data)
        return [
            Document(f"{domain}-{index}", domain, text)
            for domain in sorted(texts)
            for index, text in subset(list(enumerate(texts[domain])), limit, seed, f"{self.name}:{domain}")
            if text
        ]

    def run(
        self,
        items: Sequence[Document],
        generate: Generate,
        score: Score,
        codec: TextCodec,
        settings: EvalSettings,
        advance: Advance,
    ) -> Result:
        context_length = self.context_length or settings.context_length
        stride = self.stride or max(1, context_length // 2)
        cut: list[Window] = []
        for index, item in enumerate(items):
            cut += windows(_encode(item, codec), context_length, stride, index)
        bits = _score_documents(cut, len(items), score, settings.batch_size, advance)
        tokens = np.bincount([w.document for w in cut], [w.num_counted for w in cut], minlength=len(items))
        records = [_record(self.name, *triple) for triple in zip(items, bits, tokens.astype(int).tolist(), strict=True)]
        return _result(self.name, items, records, context_length, stride, settings)


def _read_folder(data: Path | None) -> dict[str, list[str]]:
    paths = sorted(Path(data, FOLDER).glob("*")) if data is not None else []
    texts: dict[str, list[str]] = {}
    for path in paths:
        if path.suffix == ".txt":
            texts[path.stem] = [path.read_text(encoding="utf-8")]
        elif path.suffix == ".jsonl":
            texts[path.stem] = [text_field(path, number, line, "text") for number, line in read_jsonl(path)]
    if not texts:
        raise ValueError(
            f"bits_per_byte: saw no .txt or .jsonl in {FOLDER}/ under {data}, expected held-out text; "
            "give --data FOLDER"
        )
    return texts


def _encode(item: Document, codec: TextCodec) -> list[int]:
    ids = codec.tokenizer.encode(item.text)
    if codec.tokenizer.decode(ids) != item.text:
        raise ValueError(
            f"bits_per_byte: document {item.id}: saw tokens that do not spell its text, expected a lossless tokenizer"
        )
    return [codec.tokenizer.bos_id, *ids]


def _score_documents(
    cut: Sequence[Window], num_documents: int, score: Score, batch_size: int, advance: Advance
) -> list[float]:
    """Bits of each document. Windows of like length are scored together, which wastes the least padding."""
    parts: list[list[float]] = [[] for _ in range(num_documents)]
    order = sorted(range(len(cut)), key=lambda index: len(cut[index].ids))
    for start in range(0, len(order), batch_size):
        batch = [cut[index] for index in order[start : start + batch_size]]
        for window, logprobs in zip(batch, score([window.ids for window in batch]), strict=True):
            if len(logprobs) != len(window.ids) - 1:
                raise ValueError(
                    f"Score: saw {len(logprobs)} log-probabilities for {len(window.ids)} ids, expected n - 1"
                )
            counted = np.asarray(logprobs, dtype=np.float64)[-window.num_counted :]
            parts[window.document].append(-float(counted.sum()) / math.log(2))
        advance(min(start + batch_size, len(order)), len(order))
    return [math.fsum(part) for part in parts]


def _record(task: str, item: Document, bits: float, num_tokens: int) -> Record:
    return Record(
        task=task,
        id=item.id,
        group=item.domain,
        prompt=item.text,
        output="",
        expected="",
        score=bits,
        num_tokens=num_tokens,
        details={"bytes": len(item.text.encode())},
    )


def _figure(records: Sequence[Record]) -> Estimate:
    return ratio([record.score or 0.0 for record in records], [record.details["bytes"] for record in records])


def _result(
    task: str,
    items: Sequence[Document],
    records: Sequence[Record],
    context_length: int,
    stride: int,
    settings: EvalSettings,
) -> Result:
    groups, domains = {}, {}
    for domain in sorted({item.domain for item in items}):
        own = [record for record in records if record.group == domain]
        groups[domain] = _figure(own)
        num_bytes = sum(record.details["bytes"] for record in own)
        compressed = xz_bytes([item.text for item in items if item.domain == domain])
        domains[domain] = {
            "bpb": finite(groups[domain].value),
            "stderr": finite(groups[domain].stderr),
            "xz_bpb": 8 * compressed / num_bytes,
            "bytes": num_bytes,
            "tokens": sum(record.num_tokens for record in own),
            "documents": len(own),
        }
    return Result(
        task=task,
        metric="bits_per_byte",
        estimate=_figure(records),
        chance=None,
        card={
            "template": "[BOS] + document",
            "prompts_sha256": prompts_sha256(records),
            "decoding": "scored",
            "context_length": context_length,
            "stride": stride,
            "seed": settings.seed,
            "xz": "xz -9e of the same bytes, documents end to end",
        },
        records=records,
        groups=groups,
        details={
            "domains": domains,
            "bytes": sum(record.details["bytes"] for record in records),
            "mean_of_domains": finite(mean([group.value for group in groups.values()]).value),
        },
    )
