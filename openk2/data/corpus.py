"""From sources to the two sides of a corpus: read, drop duplicates, cut, split, drop leaks, sample.

Invariants: a pure function of the config and the files read; no training
document shares half of its text with a validation document; training text is
at most `max_bytes`, of which code is at most `code_fraction`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from openk2.config.run import DataConfig
from openk2.data.cutting import cut, limit_for
from openk2.data.dedup import find_duplicates, find_leaks
from openk2.data.sources import CODE_DOMAIN, Document, read_path, read_sources
from openk2.data.split import num_bytes, order_key, split_domain

Progress = Callable[[str], None]


@dataclass
class DomainCounts:
    """What became of one domain's text; bytes are UTF-8."""

    read_documents: int = 0
    read_bytes: int = 0
    exact_duplicates: int = 0
    near_duplicates: int = 0
    duplicate_bytes: int = 0
    leaks: int = 0  # training documents dropped because they repeat validation text
    leak_bytes: int = 0
    train_available_bytes: int = 0  # before sampling to the budget
    train_documents: int = 0
    train_bytes: int = 0
    val_documents: int = 0
    val_bytes: int = 0


@dataclass(frozen=True)
class Corpus:
    """Documents of both sides, by domain in the order of reading."""

    training: dict[str, list[Document]]
    validation: dict[str, list[Document]]
    counts: dict[str, DomainCounts]
    skipped: dict[str, int] = field(default_factory=dict)


def build_corpus(config: DataConfig, progress: Progress | None = None) -> Corpus:
    """Everything before tokens. Raises ValueError for unusable data or a missing package."""
    say = progress or (lambda message: None)
    say("reading text")
    reading = read_sources(config.sources) if config.path is None else read_path(config.path)
    counts = {document.domain: DomainCounts() for document in reading.documents}
    for document in reading.documents:
        counts[document.domain].read_documents += 1
        counts[document.domain].read_bytes += num_bytes(document.text)
    say(f"looking for duplicates in {len(reading.documents):,} texts")
    unique = _without_duplicates(reading.documents, counts)
    training, validation = _split(unique, config)
    say("looking for training text that repeats validation text")
    training = _without_leaks(training, validation, counts)
    for document in training:
        counts[document.domain].train_available_bytes += num_bytes(document.text)
    training = _sample(training, config)
    for document in training:
        counts[document.domain].train_documents += 1
        counts[document.domain].train_bytes += num_bytes(document.text)
    for document in validation:
        counts[document.domain].val_documents += 1
        counts[document.domain].val_bytes += num_bytes(document.text)
    if not training or not validation:
        total = sum(count.read_bytes for count in counts.values())
        raise ValueError(
            f"data: saw {total:,} bytes of text in {len(reading.documents)} documents, too little to train and "
            f"to hold some out; expected at least two documents or 2,000 characters, and max_bytes to allow one"
        )
    return Corpus(
        _by_domain(training, counts), _by_domain(validation, counts), counts, dict(sorted(reading.skipped.items()))
    )


def training_texts(config: DataConfig, corpus: Corpus | None = None) -> Iterable[str]:
    """The texts of the training side only, for training a tokenizer."""
    corpus = corpus or build_corpus(config)
    return (document.text for documents in corpus.training.values() for document in documents)


def _without_duplicates(documents: list[Document], counts: dict[str, DomainCounts]) -> list[Document]:
    found = find_duplicates([document.text for document in documents])
    for index in (*found.exact, *found.near):
        count = counts[documents[index].domain]
        count.exact_duplicates += index in found.exact
        count.near_duplicates += index in found.near
        count.duplicate_bytes += num_bytes(documents[index].text)
    return [documents[index] for index in found.kept]


def _split(documents: list[Document], config: DataConfig) -> tuple[list[Document], list[Document]]:
    """Cut long texts, then hold out documents of every domain."""
    training: list[Document] = []
    validation: list[Document] = []
    for members in _grouped(documents).values():
        limit = limit_for(sum(len(document.text) for document in members))
        parts = [
            Document(part, document.domain, f"{document.source_id}#{number}")
            for document in members
            for number, part in enumerate(cut(document.text, limit))
        ]
        split = split_domain(parts, config.val_bytes, config.seed)
        training += split.training
        validation += split.validation
    return training, validation


def _without_leaks(
    training: list[Document], validation: list[Document], counts: dict[str, DomainCounts]
) -> list[Document]:
    leaks = set(find_leaks([d.text for d in training], [d.text for d in validation]))
    for index in leaks:
        counts[training[index].domain].leaks += 1
        counts[training[index].domain].leak_bytes += num_bytes(training[index].text)
    return [document for index, document in enumerate(training) if index not in leaks]


def _sample(training: list[Document], config: DataConfig) -> list[Document]:
    """Whole documents up to the budget, in an order drawn by seed; code first, up to its share; prose gets the rest."""
    if config.path is not None:
        return _take(training, config.max_bytes, config.seed)
    code = [document for document in training if document.domain == CODE_DOMAIN]
    prose = [document for document in training if document.domain != CODE_DOMAIN]
    code = _take(code, int(config.max_bytes * config.code_fraction), config.seed)
    prose_budget = config.max_bytes - sum(num_bytes(document.text) for document in code)
    return code + _take(prose, prose_budget, config.seed)


def _take(documents: list[Document], budget: int, seed: int) -> list[Document]:
    """Documents that fit the budget, each tried in the drawn order, returned in reading order."""
    chosen = set()
    for index in sorted(range(len(documents)), key=lambda i: order_key(documents[i].text, "sample", seed)):
        size = num_bytes(documents[index].text)
        if size <= budget:
            chosen.add(index)
            budget -= size
    return [document for index, document in enumerate(documents) if index in chosen]


def _grouped(documents: Iterable[Document]) -> dict[str, list[Document]]:
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.domain, []).append(document)
    return groups


def _by_domain(documents: list[Document], counts: dict[str, DomainCounts]) -> dict[str, list[Document]]:
    groups = _grouped(documents)
    return {domain: groups.get(domain, []) for domain in counts}
