"""A run's folder: locked while in use, with `run.json` saying what runs in it.

Invariants: a folder holds one stage with one config; starting another there is
refused once anything has been made, starting the same one again means resuming
it. What was settled at the
first start (a dtype chosen by timing, say) stays settled. `run.json` is whole
or absent. Left out: checkpoints and metrics, which only live beside it; and
torch, whose version and thread count the caller passes in.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from openk2.observe.files import write_atomic
from openk2.observe.lock import LOCK_NAME, RunLock

RUN_FILE = "run.json"
_SHOWN_VALUE = 60  # characters of a config value quoted in a message

Value = TypeVar("Value", bool, int, float, str)


class RunFolder:
    """An open run folder; `RunFolder.open` makes it, `close` or the end of the `with` frees it.

    `resumed` tells whether a run was begun here before; `warnings` says, one
    line each, what has changed since in a way that may change results.
    """

    def __init__(self, path: Path, lock: RunLock, record: dict[str, Any], warnings: tuple[str, ...]) -> None:
        self.path = path
        self.record = record
        self.warnings = warnings
        self._lock = lock

    @classmethod
    def open(
        cls,
        path: Path | str,
        config: Mapping[str, Any],
        *,
        stage: str,
        command: Sequence[str],
        seed: int,
        threads: int,
        versions: Mapping[str, str],
        free: Collection[str] = (),
    ) -> RunFolder:
        """Create or re-enter the folder at `path`.

        `config` is the resolved config as nested dicts, of which the sections named in `free` may be others at the
        next start; `versions` maps "python", "torch", "openk2" and so on to their versions.

        Raises `ValueError` if another process holds the folder, if `run.json`
        cannot be read, or if the folder holds another stage, config or seed.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path}: saw a file, expected a run folder; choose another path")
        lock = RunLock(path)
        try:
            start = {
                "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": list(command),
                "commit": git_commit(),
                "threads": threads,
                "versions": dict(versions),
            }
            whole = {"stage": stage, "config": _as_json(config), "seed": seed}
            identity = _without(whole, free)
            record = _read(path / RUN_FILE)
            if record is None or _is_idle(path, _without(record, free), identity):
                digest = config_digest(config)
                record = {**whole, "config_digest": digest, "resolved": {}, **start, "resumes": []}
                warnings: tuple[str, ...] = ()
            else:
                _refuse_another(path, _without(record, free), identity)
                warnings = tuple(_changes(record, start))
                record["resumes"].append(start)
            folder = cls(path, lock, record, warnings)
            folder._save()
        except BaseException:
            lock.release()
            raise
        return folder

    @property
    def resumed(self) -> bool:
        return bool(self.record["resumes"])

    @property
    def resolved(self) -> dict[str, Any]:
        """What was settled at the first start, by name."""
        return dict(self.record["resolved"])

    def resolve(self, name: str, decide: Callable[[], Value]) -> Value:
        """The value settled under `name`; `decide` is called, and its answer kept, only if there is none yet."""
        resolved = self.record["resolved"]
        if name not in resolved:
            resolved[name] = decide()
            self._save()
        value: Value = resolved[name]
        return value

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _save(self) -> None:
        write_atomic(self.path / RUN_FILE, json.dumps(self.record, indent=2, ensure_ascii=False) + "\n")


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of the config's canonical JSON: keys sorted, no spaces."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def git_commit() -> str | None:
    """The commit this package runs from, "-dirty" appended if tracked files differ from it; None if not from git."""
    here = Path(__file__).resolve()
    # GIT_DIR and its like, set inside hooks, would answer for another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here.parent), *arguments],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # installed inside someone else's repository: not ours
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: saw broken JSON ({error}), expected a run record; use a new folder") from None
    needed = {"stage", "config", "seed", "resolved", "commit", "threads", "versions", "resumes"}
    missing = sorted(needed - set(record)) if isinstance(record, dict) else ["object"]
    if missing:
        raise ValueError(f"{path}: saw no {missing[0]!r}, expected a run record; use a new folder")
    return dict(record)


def _without(record: Mapping[str, Any], free: Collection[str]) -> dict[str, Any]:
    """The record, its config without the sections that may change."""
    return {**record, "config": {name: value for name, value in record["config"].items() if name not in free}}


def _is_idle(path: Path, record: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether the folder holds another run that left nothing but its record, as one does that is refused at once."""
    another = any(record.get(key) != value for key, value in identity.items())
    return another and all(entry.name in (RUN_FILE, LOCK_NAME) for entry in path.iterdir())


def _refuse_another(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for name in ("stage", "config", "seed"):
        for key, before, now in _differences(old[name], new[name], name):
            raise ValueError(
                f"{path}: saw {key.removeprefix('config.')} = {now}, expected {before}, with which this folder's run "
                "began; use a new folder for another run"
            )


def _differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, str, str]]:
    """(dotted key, old value, new value) of each leaf that differs, in the new config's order."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*new, *(name for name in old if name not in new)]:
            yield from _differences(old.get(name, _ABSENT), new.get(name, _ABSENT), f"{key}.{name}")
    elif old != new or type(old) is not type(new):
        yield key, _quote(old), _quote(new)


_ABSENT = object()


def _quote(value: Any) -> str:
    text = "nothing" if value is _ABSENT else json.dumps(value)
    return text if len(text) <= _SHOWN_VALUE else text[: _SHOWN_VALUE - 3] + "..."


def _changes(record: Mapping[str, Any], start: Mapping[str, Any]) -> Iterator[str]:
    consequence = "results may not be bit for bit those of an uninterrupted run"
    before = {"threads": record["threads"], "commit": record["commit"], **record["versions"]}
    now = {"threads": start["threads"], "commit": start["commit"], **start["versions"]}
    for name in sorted(set(before) | set(now)):
        if before.get(name) != now.get(name):
            yield f"{name}: the run began with {before.get(name)}, this start has {now.get(name)}; {consequence}"


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as it will be read back: tuples become lists."""
    normal: dict[str, Any] = json.loads(json.dumps(config))
    return normal
