"""tools -> agents + tasks -> simulate -> judge -> filter, K2's agentic data synthesis made small.

`synthesise` writes `trajectories.jsonl` (the tool dialogues that the judge
passed, then plain ones, then pairs for the critic) and `manifest.json`. Both are written aside
and renamed, the manifest last, so a folder with a manifest is complete; the
same config gives the same bytes. Left out: sharding, and teachers that are
models (`Teacher` shows what one has to answer).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from openk2.config.run import SynthConfig
from openk2.observe.files import write_atomic
from openk2.posttrain.synth.agents import roster
from openk2.posttrain.synth.judge import Verdict, judge
from openk2.posttrain.synth.preferences import make_preference
from openk2.posttrain.synth.simulate import Dialogue, simulate
from openk2.posttrain.synth.tasks import Made, make_plain, make_task
from openk2.posttrain.synth.teacher import Teacher
from openk2.protocols import Task, task_to_dict

TRAJECTORIES = "trajectories.jsonl"
MANIFEST = "manifest.json"
_FORMAT = 1
_PROGRESS_EVERY = 50

Progress = Callable[[int, int], None]


def synthesise(config: SynthConfig, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Write the trajectories and their manifest into `out`; returns the manifest.

    `progress(done, total)` counts attempts, the plain ones and pairs included.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    num_plain = round(config.attempts * config.plain_fraction)
    num_critiques = round(config.attempts * config.critique_fraction)
    total = config.attempts + num_plain + num_critiques
    tally = _Tally()
    for index in range(total):
        if index < config.attempts:
            _attempt(make_task(config.seed, index), config, tally, kind="tool")
        elif index < config.attempts + num_plain:
            _attempt(make_plain(config.seed, index - config.attempts), config, tally, kind="plain")
        else:
            # Tasks beyond those attempted above: what the critic sees is not what the policy was shown.
            _attempt_preference(make_task(config.seed, index), config, tally)
        if progress is not None and ((index + 1) % _PROGRESS_EVERY == 0 or index + 1 == total):
            progress(index + 1, total)
    text = "".join(tally.lines)
    manifest = _manifest(config, tally, text)
    write_atomic(out / TRAJECTORIES, text)
    write_atomic(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return manifest


@dataclass
class _Tally:
    """What has been kept and what was not, so far."""

    lines: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    templates: set[str] = field(default_factory=set)
    attempted: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    domains: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    agents: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)
    flawed: int = 0
    flawed_kept: int = 0


def _attempt(made: Made, config: SynthConfig, tally: _Tally, kind: str) -> None:
    """Simulate and judge one task, and keep the dialogue or count why not."""
    task = made.task
    teacher = Teacher(task, made.replies, random.Random(f"teacher/{task.id}"), config.error_rate)
    dialogue = simulate(task, teacher.reply)
    verdict = judge(task, dialogue)
    key = _fingerprint(task, dialogue)
    reason = verdict.reason or ("duplicate" if key in tally.seen else "")
    tally.attempted[kind] += 1
    tally.flawed += any(teacher.errors)
    if reason:
        tally.rejected[reason] += 1
        return
    tally.flawed_kept += any(teacher.errors)
    tally.seen.add(key)
    tally.templates.update(made.templates)
    tally.kept[kind] += 1
    tally.domains[task.domain] += 1
    tally.turns[len(task.turns)] += 1
    tally.agents.add((task.system, task.tools))
    tally.lines.append(json.dumps(_record(task, dialogue, verdict, config.seed, kind), ensure_ascii=False) + "\n")


def _attempt_preference(made: Made, config: SynthConfig, tally: _Tally) -> None:
    tally.attempted["critique"] += 1
    messages = make_preference(made)
    if messages is None:
        tally.rejected["undecided pair"] += 1
        return
    tally.kept["critique"] += 1
    tally.domains["critique"] += 1
    tally.turns[1] += 1
    line = {
        "id": f"critique-{made.task.id}",
        "messages": messages,
        "tools": [],
        "seed": config.seed,
        "kind": "critique",
    }
    tally.lines.append(json.dumps(line, ensure_ascii=False) + "\n")


def _record(task: Task, dialogue: Dialogue, verdict: Verdict, seed: int, kind: str) -> dict[str, Any]:
    return {
        "id": task.id,
        "task": task_to_dict(task),
        "messages": dialogue.messages,
        "tools": dialogue.tools,
        "outcome": {**asdict(verdict.outcome), "success": verdict.outcome.success},
        "rubric_scores": dict(verdict.scores),
        "seed": seed,
        "kind": kind,
    }


def _fingerprint(task: Task, dialogue: Dialogue) -> str:
    """Two dialogues are the same if the same was said with the same tools on offer, letter case aside."""
    said = [message for message in dialogue.messages if message["role"] != "system"]
    text = json.dumps([sorted(task.tools), said], sort_keys=True).lower()
    return hashlib.sha256(text.encode()).hexdigest()


def _manifest(config: SynthConfig, tally: _Tally, text: str) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "config": asdict(config),
        "seed": config.seed,
        "attempted": dict(tally.attempted),
        "kept": dict(tally.kept),
        "rejected": dict(sorted(tally.rejected.items())),
        "by_domain": dict(sorted(tally.domains.items())),
        "by_user_turns": {str(count): number for count, number in sorted(tally.turns.items())},
        "teacher_errors": {"dialogues": tally.flawed, "kept": tally.flawed_kept},
        "distinct_phrasings": len(tally.templates),
        "agents": {"roster": len(roster()), "used_prompts_and_toolsets": len(tally.agents)},
        "files": {
            TRAJECTORIES: {
                "lines": len(tally.lines),
                "bytes": len(text.encode()),
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
            }
        },
        "sources": [
            {"name": "openk2 phrase tables, tools and scripted teacher", "licence": "MIT"},
            {"name": "answers of mcp-server-git over a generated repository, recorded", "licence": "MIT"},
        ],
    }
