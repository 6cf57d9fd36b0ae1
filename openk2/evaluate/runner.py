"""Run tasks and write what was found: `evaluation.json` (figures with their cards) and `items.jsonl` (every item).

Every task is loaded, and so every file checked, before the first is run. Both
files are rewritten whole after each task, so a run that is cut short leaves
the finished tasks. Nothing here knows which engine answers.

Leaves out: repeats. Decoding is greedy, so a repeat with one engine adds
nothing; the standard error is over items.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openk2.evaluate.published import published_figure
from openk2.evaluate.records import EvalSettings, EvalTask, Result, TextCodec, record_as_dict
from openk2.evaluate.task_files import read_task_file
from openk2.evaluate.tasks import TASKS
from openk2.evaluate.tasks.own import OwnQuestions
from openk2.evaluate.tasks.tools import ToolCalls
from openk2.observe.files import write_atomic
from openk2.protocols import Generate, Score

RESULTS_FILE = "evaluation.json"
ITEMS_FILE = "items.jsonl"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the run stands; `eta_s` is for this task, None before its first batch is done."""

    task: str
    done: int
    total: int
    elapsed_s: float
    eta_s: float | None


def resolve(wanted: str | Path | EvalTask[Any]) -> list[EvalTask[Any]]:
    """The tasks that a registry name, a JSONL file or a task object stands for.

    A file with both tool tasks and questions gives two tasks, NAME.tools and NAME.questions.
    """
    if not isinstance(wanted, str | Path):
        return [wanted]
    if isinstance(wanted, str) and wanted in TASKS:
        return [TASKS[wanted]]
    path = Path(wanted)
    if path.suffix != ".jsonl" and not path.exists():
        near = difflib.get_close_matches(str(wanted), TASKS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"--tasks: saw {str(wanted)!r}, expected one of {', '.join(sorted(TASKS))} or a .jsonl file{hint}"
        )
    tasks, questions = read_task_file(path)
    both = bool(tasks and questions)
    found: list[EvalTask[Any]] = []
    if tasks:
        found.append(ToolCalls(f"{path.stem}.tools" if both else path.stem, tasks))
    if questions:
        found.append(OwnQuestions(f"{path.stem}.questions" if both else path.stem, questions))
    return found


def evaluate(
    wanted: Sequence[str | Path | EvalTask[Any]],
    generate: Generate,
    score: Score,
    codec: TextCodec,
    *,
    settings: EvalSettings,
    data: Path | str | None = None,
    out: Path | str | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Result]:
    """Run tasks in the given order and return their results by name.

    `data` holds the data sets (gsm8k/, math/, mmlu/, validation/); `out` is the folder for the two
    files, made if absent; `about` goes into evaluation.json as it is (checkpoint, commit, seed ...).
    ValueError, before anything runs, for an unknown name, a missing or broken file, or a name used twice.
    """
    tasks = [task for entry in wanted for task in resolve(entry)]
    _refuse_repeats([task.name for task in tasks])
    items = [task.load(Path(data) if data else None, settings.limit, settings.seed) for task in tasks]
    results: dict[str, Result] = {}
    for task, own in zip(tasks, items, strict=True):
        if not own:
            raise ValueError(f"{task.name}: saw no items, expected at least one")
        result = task.run(own, generate, score, codec, settings, _clock(task.name, progress))
        published = published_figure(task.name, settings.variant)
        results[task.name] = dataclasses.replace(result, published=published)
        if out is not None:
            write_results(Path(out), results, settings, about or {})
    return results


def write_results(
    out: Path, results: Mapping[str, Result], settings: EvalSettings, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write both files atomically, the items first: evaluation.json carries their hash. Returns its content."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(record_as_dict(record), ensure_ascii=False, allow_nan=False)
        for result in results.values()
        for record in result.records
    ]
    items = "".join(line + "\n" for line in lines).encode("utf-8", "replace")
    content = {
        "about": dict(about),
        "settings": dataclasses.asdict(settings),
        "items_sha256": hashlib.sha256(items).hexdigest(),
        "results": {name: result.as_dict() for name, result in results.items()},
    }
    write_atomic(out / ITEMS_FILE, items)
    write_atomic(out / RESULTS_FILE, json.dumps(content, ensure_ascii=False, allow_nan=False, indent=2) + "\n")
    return content


def _refuse_repeats(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--tasks: saw {name!r} more than once, expected each name once; rename the file")


def _clock(task: str, progress: Callable[[Progress], None] | None) -> Callable[[int, int], None]:
    """Turn a task's (done, total) into `Progress` with the time so far and the time left."""
    start = time.monotonic()

    def advance(done: int, total: int) -> None:
        if progress is not None:
            elapsed = time.monotonic() - start
            progress(Progress(task, done, total, elapsed, elapsed / done * (total - done) if done else None))

    return advance
