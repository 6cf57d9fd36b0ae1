"""`openk2 verify-resume`: runs each stage whole, and again with a kill -9 half-way, and compares every tensor.

What is compared is the last checkpoint: weights, router biases, optimizer
state, and the data cursor. The runs are real commands in processes of their
own, so nothing is shared between them but files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openk2.checkpoint.native import load_latest
from openk2.observe.console import Console
from openk2.recipes import pretrain_recipe

STAGES = ("pretrain", "sft", "rl")
PRESETS = ("tiny", "small")
_POLL_S = 0.02
_LIMIT_S = 1800.0


def verify(preset: str, stages: Sequence[str], steps: int, out: Path | None, console: Console, *, as_json: bool) -> int:
    """Exit code 0 if every stage ends bit for bit the same, 1 if one does not."""
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"--stages: saw {unknown[0]!r}, expected some of {', '.join(STAGES)}")
    if steps < 2:
        raise ValueError(f"--steps: saw {steps}, expected at least 2, to be killed between")
    pretrain_recipe(preset)  # an unknown one is refused before anything starts
    if preset not in PRESETS:
        raise ValueError(f"verify-resume: saw {preset}, expected {' or '.join(PRESETS)}: the others need a cluster")
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        results = {}
        commands = dict(_commands(preset, stages, steps, folder))
        for stage, command in commands.items():
            console.section(f"verify-resume {stage}")
            results[stage] = _verify_stage(stage, command, steps, folder, console)
    console.result(json.dumps(results, indent=2) if as_json else _table(results))
    return 0 if all(result["identical"] for result in results.values()) else 1


def _commands(preset: str, stages: Sequence[str], steps: int, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each stage's command without its --out, after what it needs has been made."""
    short = ["--train.warmup_steps", "1", "--train.decay_steps", "1", "--train.checkpoint_every", "2"]
    few = ["--train.steps", str(steps), *short, "--train.eval_every", str(steps)]
    length = pretrain_recipe(preset).train.sequence_length
    small = ["--train.batch_tokens", str(4 * length), "--train.micro_batch_tokens", str(2 * length)]
    data = ["--data.max_bytes", "2000000", "--data.val_bytes", "16384"]
    base = folder / "pretrain-whole" / "base"
    trajectories = folder / "synth" / "trajectories.jsonl"
    pretrain = ["pretrain", preset, *data, *few, *small]
    yield "pretrain", pretrain
    if "sft" in stages or "rl" in stages:
        _run(["synth", "--out", str(folder / "synth"), "--attempts", "200"])
    if "sft" in stages:
        yield (
            "sft",
            ["sft", str(base), "--data", str(trajectories), *few, *small, "--train.sequence_length", str(length)],
        )
    if "rl" in stages:
        sampling = ["--prompts_per_step", "2", "--group_size", "3", "--pool_tasks", "8", "--token_budget", "24"]
        keeping = ["--steps", str(steps), "--checkpoint_every", "2", "--warmup_steps", "1"]
        yield "rl", ["rl", str(base), "--data", str(trajectories), *sampling, *keeping]


def _verify_stage(stage: str, command: list[str], steps: int, folder: Path, console: Console) -> dict[str, Any]:
    whole, killed = folder / f"{stage}-whole", folder / f"{stage}-killed"
    _run([*command, "--out", str(whole)])
    killed_at = _run_and_kill([*command, "--out", str(killed)], killed / "metrics.jsonl", max(1, steps // 2))
    console.line(f"{stage}: killed after step {killed_at}, going on")
    _run([*command, "--out", str(killed)])
    different = first_difference(_final(whole), _final(killed))
    return {"identical": different is None, "killed_after_step": killed_at, "first_difference": different}


def _final(folder: Path) -> dict[str, Any]:
    found = load_latest(folder / "checkpoints")
    assert found is not None, f"{folder} has no checkpoint"
    # The step's record stands beside these and holds clock times, which no two runs share.
    return {"step": found[0], **{part: found[1][part] for part in ("model", "optimizer", "cursor")}}


def first_difference(left: Any, right: Any, name: str = "") -> str | None:
    """The first leaf, in order, that is not the same bit for bit; None where all are."""
    if isinstance(left, dict) and isinstance(right, dict):
        if list(left) != list(right):
            return f"{name or 'checkpoint'}: other keys"
        children = ((f"{name}/{key}".lstrip("/"), left[key], right[key]) for key in left)
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple) and len(left) == len(right):
        children = ((f"{name}/{index}", a, b) for index, (a, b) in enumerate(zip(left, right, strict=True)))
    elif isinstance(left, Tensor) and isinstance(right, Tensor):
        if left.shape == right.shape and left.dtype == right.dtype and torch.equal(left, right):
            return None
        return f"{name}: tensors differ"
    else:
        return None if type(left) is type(right) and left == right else f"{name}: {left!r} and {right!r}"
    return next((found for key, a, b in children if (found := first_difference(a, b, key))), None)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def _invocation(command: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "openk2", *command]


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(_invocation(command), env=_environment(), capture_output=True, text=True, timeout=_LIMIT_S)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"openk2 {command[0]} ended with code {done.returncode}: {last}")


def _run_and_kill(command: Sequence[str], metrics: Path, after: int) -> int:
    """Start the command and kill -9 it once `after` steps are on record; returns how many were."""
    process = subprocess.Popen(
        _invocation(command), env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    limit = time.monotonic() + _LIMIT_S
    try:
        while process.poll() is None and time.monotonic() < limit:
            recorded = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
            if recorded >= after:
                break
            time.sleep(_POLL_S)
        if process.poll() is not None:
            raise ValueError("verify-resume: the run ended before it could be killed; give more --steps")
    finally:
        process.kill()
        process.wait()
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def _table(results: dict[str, Any]) -> str:
    lines = []
    for stage, result in results.items():
        verdict = "bit for bit the same" if result["identical"] else f"DIFFERS at {result['first_difference']}"
        lines.append(f"{stage:<9} killed after step {result['killed_after_step']}: {verdict}")
    return "\n".join(lines)
