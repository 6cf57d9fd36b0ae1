"""Which requests a test run consists of, and the record in `run.json` from which they are known again.

Invariant: a request's key depends on what is sent, on the target's name and on
nothing else, so that a run started again, and a report made a year later, find
the same answers.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openk2.evaluate.testrun import fields
from openk2.evaluate.testrun.prompts import Prompt, digest
from openk2.evaluate.testrun.replies import Key
from openk2.evaluate.testrun.targets import Price, Target
from openk2.observe.files import write_atomic
from openk2.observe.run_folder import RUN_FILE, git_commit
from openk2.version import __version__

STAGE = "testrun"


@dataclass(frozen=True, slots=True)
class Column:
    """A target as it was last asked, and how: a column of the report."""

    target: Target
    samples: int
    seed: int | None

    def as_dict(self) -> dict[str, Any]:
        target = self.target
        return {
            "name": target.name,
            "answers": answers_for(target),
            "model": target.model,
            "price": None if target.price is None else [target.price.input, target.price.output],
            "extra": dict(target.extra),
            "samples": self.samples,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> Column:
        price = None if line["price"] is None else Price(*line["price"])
        target = Target("", line["name"], line["model"], "", price, line["extra"], line["answers"])
        return cls(target, line["samples"], line["seed"])


@dataclass(frozen=True, slots=True)
class Request:
    """One sample of one prompt from one target."""

    target: str
    prompt: Prompt
    sample: int
    body: Mapping[str, Any]

    @property
    def key(self) -> Key:
        return (self.target, self.prompt.hash, digest(self.body), self.sample)


@dataclass(slots=True)
class RunRecord:
    """What `run.json` holds: the run's own id and its columns, by name and in order of their first start."""

    run: str
    columns: dict[str, Column]

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        path = folder / RUN_FILE
        if not path.is_file():
            raise ValueError(f"{folder}: saw no {RUN_FILE}, expected the folder of a test run; check the path")
        line = fields.read_json(fields.read_text(path), str(path))
        if line.get("stage") != STAGE:
            fields.refuse(f"{path}: stage", line.get("stage"), f'"{STAGE}"; use another folder')
        columns = [Column.from_dict(entry) for entry in line["targets"]]
        return cls(line["run"], {column.target.name: column for column in columns})

    @classmethod
    def open(cls, folder: Path) -> RunRecord:
        """The folder's record, or a new one where it holds no run."""
        return cls.read(folder) if (folder / RUN_FILE).exists() else cls(uuid.uuid4().hex, {})

    def add(self, column: Column) -> None:
        """Add or renew a column. ValueError where its name stands for something else here."""
        name, now = column.target.name, answers_for(column.target)
        before = self.columns.get(name)
        if before is not None and answers_for(before.target) != now:
            raise ValueError(
                f"target {name}: saw {now}, expected {answers_for(before.target)}, which has that name in this folder; "
                "give it another name= or use another folder"
            )
        self.columns[name] = column

    def write(self, folder: Path) -> None:
        line = {
            "stage": STAGE,
            "run": self.run,
            "openk2": __version__,
            "commit": git_commit(),
            "targets": [column.as_dict() for column in self.columns.values()],
        }
        write_atomic(folder / RUN_FILE, json.dumps(line, indent=2, ensure_ascii=False) + "\n")


def answers_for(target: Target) -> str:
    """What answers under the target's name."""
    return target.identity or target.url


def requests(prompts: Sequence[Prompt], columns: Iterable[Column]) -> list[Request]:
    """All requests: every prompt's first sample before any second one."""
    return [
        Request(column.target.name, prompt, sample, body_of(prompt, column, sample))
        for column in columns
        for sample in range(column.samples)
        for prompt in prompts
    ]


def body_of(prompt: Prompt, column: Column, sample: int) -> dict[str, Any]:
    """The JSON that is sent. What the target adds wins, and its nulls take fields out."""
    body: dict[str, Any] = {
        "model": column.target.model,
        **prompt.request,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if column.seed is not None:
        body["seed"] = column.seed + sample
    body |= column.target.extra
    return {name: value for name, value in body.items() if value is not None}
