"""The typed record of one training step, and the JSONL file that keeps it.

Invariants: one line is one step; every line is valid JSON that any reader takes
(a number that is not finite is written as null and read back as NaN); a process
killed while writing leaves at most one torn line, the last, which the next
writer cuts off. Left out: plotting (`report.py`) and the console (`console.py`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from openk2.observe.files import write_atomic

_DECIMALS = 3  # 384 experts in 60 layers stay near 150 kB a line


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What one optimizer step measured. None, or empty, where a stage does not measure it.

    `step` counts from 1. Losses are in nats per counted token; `bits_per_byte`
    is estimated from the loss and the mean bytes of a token. `matmul_share` is
    the share (0 to 1) of the matrix-multiply peak measured on this machine.
    `update_rms` has one entry a parameter group, named `optimizer.kind`
    ("muon.experts", "adamw.embedding"). `max_logit` is the largest attention
    logit before the softmax, and `max_logits[layer][head]` has one a head,
    which `logit_bounds[layer][head]` says it does not exceed (equal: exact);
    `gamma[layer][head]` is what QK-Clip scaled that head by, empty where it
    scaled none.
    `expert_load[layer][expert]` is relative: each layer's mean is 1.
    `extra` holds a stage's own figures, such as RL's reward and mismatch KL.
    """

    step: int
    stage: str
    loss: float
    tokens: int
    tokens_per_s: float
    wall_s: float
    balance_loss: float | None = None
    bits_per_byte: float | None = None
    matmul_share: float | None = None
    grad_norm: float | None = None
    lr: float | None = None
    update_rms: Mapping[str, float | None] = field(default_factory=dict)
    max_logit: float | None = None
    clipped_heads: int | None = None
    max_logits: Sequence[Sequence[float | None]] = ()
    logit_bounds: Sequence[Sequence[float | None]] = ()
    gamma: Sequence[Sequence[float]] = ()
    expert_load: Sequence[Sequence[float]] = ()
    dead_experts: int | None = None
    load_ratio: float | None = None
    eta_s: float | None = None
    extra: Mapping[str, float | None] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON, without the line feed."""
        values: dict[str, Any] = {name: json_safe(getattr(self, name)) for name in _NAMES}
        values["expert_load"] = [[round(float(load), _DECIMALS) for load in row] for row in self.expert_load]
        for name in ("max_logits", "logit_bounds"):
            values[name] = [[round(logit, _DECIMALS) if logit else logit for logit in row] for row in values[name]]
        return json.dumps(values, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes) -> StepRecord:
        """Read one line back. Raises `ValueError` on a line that is not a record."""
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError(f"saw {type(values).__name__}, expected a JSON object")
        if unknown := sorted(set(values) - set(_NAMES)):
            raise ValueError(f"saw unknown field {unknown[0]!r}, expected fields of StepRecord")
        if missing := [name for name in _REQUIRED if name not in values]:
            raise ValueError(f"field {missing[0]!r} is missing")
        for name in ("loss", "tokens_per_s", "wall_s"):
            values[name] = math.nan if values[name] is None else values[name]
        for name in ("max_logits", "logit_bounds", "gamma", "expert_load"):
            values[name] = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in values.get(name, ()))
        return cls(**values)


_NAMES = tuple(entry.name for entry in fields(StepRecord))
_REQUIRED = ("step", "stage", "loss", "tokens", "tokens_per_s", "wall_s")


def load_summary(expert_load: Sequence[Sequence[float]]) -> tuple[int, float]:
    """(dead experts, worst layer's largest load over its mean); an expert is dead if no token of the step chose it."""
    dead = sum(load == 0 for row in expert_load for load in row)
    ratios = [max(row) * len(row) / sum(row) for row in expert_load if sum(row) > 0]
    return dead, max(ratios, default=1.0)


class MetricsWriter:
    """Appends records to a file, each with a single write, so that no reader sees half of one."""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._cut_torn_line()
        self._descriptor = self._open()

    def write(self, record: StepRecord) -> None:
        line = (record.to_json() + "\n").encode()
        while line:
            line = line[os.write(self._descriptor, line) :]

    def truncate_after(self, step: int) -> None:
        """Drop the records of steps beyond `step`: those a resumed run will take again."""
        kept = [record.to_json() + "\n" for record in read_metrics(self._path) if record.step <= step]
        os.close(self._descriptor)
        write_atomic(self._path, "".join(kept))
        self._descriptor = self._open()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def _cut_torn_line(self) -> None:
        if not self._path.exists():
            return
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self._path, whole)


def read_metrics(path: Path | str) -> list[StepRecord]:
    """All whole records of a file, in order; none if there is no file.

    A last line without its line feed was torn by a crash and is left out. Any
    other line that is not a record raises `ValueError` with its number.
    """
    path = Path(path)
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            records.append(StepRecord.from_json(line))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path} line {number}: {error}; restore the file or delete it, the run does not need it to go on"
            ) from None
    return records


def json_safe(value: Any) -> Any:
    """`value` with every number that JSON cannot hold replaced by None."""
    if isinstance(value, Mapping):
        return {key: json_safe(entry) for key, entry in value.items()}
    if isinstance(value, (str, int)) or value is None:
        return value
    if isinstance(value, Sequence):
        return [json_safe(entry) for entry in value]
    number = float(value)
    return number if math.isfinite(number) else None


def logit_figures(records: Sequence[StepRecord]) -> dict[str, Any]:
    """`max_logit`, the largest attention logit of all steps (None without one), and `clipped_heads`, their sum."""
    return {
        "max_logit": max((record.max_logit for record in records if record.max_logit is not None), default=None),
        "clipped_heads": sum(record.clipped_heads or 0 for record in records),
    }
