"""What tasks are handed and what they give back.

A task never drops an item in silence: what cannot be asked (a prompt longer
than the context) counts as wrong with a `failure`, and what says nothing about
the model (a broken environment) is excluded and counted in `details`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from openk2.evaluate.statistics import Estimate, finite, mean, proportion, wilson
from openk2.protocols import ChatCodec, Generate, Score

VARIANTS = ("base", "instruct")
Advance = Callable[[int, int], None]  # items done, items in all


class TextTokenizer(Protocol):
    """Plain text to ids and back; `openk2.chat` has the real one."""

    @property
    def bos_id(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; no control token can come of it."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text that ids spell, control tokens by name."""
        ...


class TextCodec(ChatCodec, Protocol):
    """The chat codec together with its tokenizer: what the tasks need; `openk2.chat.Codec` is the real one."""

    @property
    def tokenizer(self) -> TextTokenizer: ...


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """How to ask. `variant` chooses the prompts (plain or chat) and the published column."""

    variant: str = "base"
    seed: int = 0
    limit: int | None = None  # items per task; a deterministic subset
    context_length: int = 2048  # tokens of prompt and answer together
    max_new_tokens: int | None = None  # None: each task's own
    max_turns: int = 4  # assistant messages per user turn in tool tasks
    batch_size: int = 32  # sequences per call of Generate or Score

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"evaluate.variant: saw {self.variant!r}, expected one of {', '.join(VARIANTS)}")
        for name in ("limit", "context_length", "max_new_tokens", "max_turns", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"evaluate.{name}: saw {value}, expected at least 1")


@dataclass(frozen=True, slots=True)
class Record:
    """One item as it was asked, answered and judged: a line of items.jsonl.

    `score` is 1.0 or 0.0 (shared between exact ties in `mmlu`), the bits of a
    document in `bits_per_byte`, and None for an excluded item.
    """

    task: str
    id: str
    group: str
    prompt: str
    output: str
    expected: str
    score: float | None
    failure: str = ""  # "" or a short typed reason
    num_tokens: int = 0  # sampled, or scored
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A task's figure with its card: enough to ask the same thing again."""

    task: str
    metric: str  # "accuracy" | "success" | "bits_per_byte"
    estimate: Estimate
    chance: float | None
    card: Mapping[str, Any]
    records: Sequence[Record]
    groups: Mapping[str, Estimate] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For evaluation.json; the records go to items.jsonl."""
        figures: dict[str, Any] = {"metric": self.metric, **self.estimate.as_dict()}
        if self.metric != "bits_per_byte" and self.estimate.n:
            figures["wilson_95"] = list(wilson(self.estimate.value, self.estimate.n))
        return {
            **figures,
            "chance": self.chance,
            "published": self.published,
            "groups": {name: group.as_dict() for name, group in self.groups.items()},
            "details": dict(self.details),
            "card": dict(self.card),
        }


ItemT = TypeVar("ItemT")


class EvalTask(Protocol[ItemT]):
    """A task: where its items come from, and how they are asked and judged."""

    @property
    def name(self) -> str: ...

    def load(self, data: Path | None, limit: int | None, seed: int) -> list[ItemT]:
        """The items, or a deterministic subset of `limit`. ValueError where `data` lacks what the task reads."""
        ...

    def run(
        self,
        items: Sequence[ItemT],
        generate: Generate,
        score: Score,
        codec: TextCodec,
        settings: EvalSettings,
        advance: Advance,
    ) -> Result: ...


def rate(records: Iterable[Record]) -> Estimate:
    """Mean score of the records that count; binomial error where every score is 0 or 1."""
    scores = [record.score for record in records if record.score is not None]
    if all(score in (0.0, 1.0) for score in scores):
        return proportion(round(math.fsum(scores)), len(scores))
    return mean(scores)


def by_group(records: Sequence[Record]) -> dict[str, Estimate]:
    """The rate in each group, groups in sorted order."""
    names = sorted({record.group for record in records})
    return {name: rate(record for record in records if record.group == name) for name in names}


def failures(records: Iterable[Record]) -> dict[str, int]:
    """How often each failure occurred, most frequent first."""
    counts: dict[str, int] = {}
    for record in records:
        if record.failure:
            counts[record.failure] = counts.get(record.failure, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def prompts_sha256(records: Iterable[Record]) -> str:
    """One hash over every prompt in order: two runs asked the same if it is the same."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(hashlib.sha256(record.prompt.encode("utf-8", "replace")).digest())
    return digest.hexdigest()


def length_details(records: Sequence[Record]) -> dict[str, float | int | None]:
    """Answer length in sampled tokens over the records that count."""
    lengths = [float(record.num_tokens) for record in records if record.score is not None]
    return {**mean(lengths).as_dict(), "max": int(max(lengths, default=0))}


def record_as_dict(record: Record) -> dict[str, Any]:
    """A JSON-ready line of items.jsonl."""
    line = asdict(record)
    line["score"] = None if record.score is None else finite(record.score)
    return line
