"""The speedrun's report, put together from what the stages left on disk: figures, curves, samples, goals."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from openk2.config.run import SpeedrunConfig
from openk2.config.serialize import to_dict
from openk2.evaluate.statistics import Estimate, beyond_two_standard_errors, paired_difference
from openk2.observe.memory import peak_rss_bytes
from openk2.observe.metrics import StepRecord, logit_figures, read_metrics
from openk2.observe.run_folder import git_commit
from openk2.plan.parameters import plan_parameters

STAGES = ("base", "sft", "more_sft", "rl")  # evaluated variants
WALL_GOAL_S = 20 * 60
MEMORY_GOAL_BYTES = 4 * 10**9


def assemble(
    out: Path,
    config: SpeedrunConfig,
    stages: Sequence[Mapping[str, Any]],
    manifest: Mapping[str, Any],
    critic: Mapping[str, Any],
    command: str,
) -> dict[str, Any]:
    """What `observe.report.write_report` takes."""
    results = {name: _results(out / "evaluation" / name) for name in STAGES}
    metrics = {name: _curve(out / name) for name in ("pretrain", "sft", "more_sft", "rl")}
    base_domains = results["base"]["bits_per_byte"]["details"]["domains"]
    last_domains = results["rl"]["bits_per_byte"]["details"]["domains"]
    report: dict[str, Any] = {
        "name": "speedrun",
        "command": command,
        "commit": git_commit(),
        "config": to_dict(config),
        "device": _device(),
        "seed": config.pretrain.train.seed,
        "wall_s": sum(stage["wall_s"] for stage in stages),
        "peak_rss_bytes": max(peak_rss_bytes(), *(stage["peak_rss_bytes"] for stage in stages)),
        "parameters": _parameters(config),
        "val_bpb": {domain: figures["bpb"] for domain, figures in base_domains.items()},
        "xz_bpb": {domain: figures["xz_bpb"] for domain, figures in base_domains.items()},
        "val_bpb_by_stage": {
            "base": {domain: figures["bpb"] for domain, figures in base_domains.items()},
            "rl": {domain: figures["bpb"] for domain, figures in last_domains.items()},
        },
        "tool_success": {name: _tool_figures(found) for name, found in results.items()},
        **logit_figures(metrics["pretrain"]),
        "stages": [_stage(stage, out) for stage in stages],
        "metrics": metrics,
        "synth": manifest,
        "critic": critic,
        "samples": _samples(out, config.evaluate.samples),
        "trajectories": {"before": _dialogues(out, "sft"), "after": _dialogues(out, "rl")},
    }
    report["goals"] = _goals(report, out)
    return report


def _stage(stage: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Time and memory of a stage; after a kill the time is that of its last attempt, and the summary says so."""
    shown = {key: stage[key] for key in ("name", "wall_s", "peak_rss_bytes")}
    record = out / stage["name"].replace(" ", "_") / "run.json"
    if record.exists() and json.loads(record.read_text())["resumes"]:
        shown["summary"] = "taken up again after a stop; the time is that of the last attempt"
    return shown


def _results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())["results"]
    return found


def _items(out: Path, stage: str, task: str) -> list[dict[str, Any]]:
    lines = (out / "evaluation" / stage / "items.jsonl").read_text().splitlines()
    return [item for item in map(json.loads, lines) if item["task"] == task]


def _curve(folder: Path) -> list[StepRecord]:
    return read_metrics(folder / "metrics.jsonl")


def _device() -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), platform.processor()
    )
    return {"processor": model, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _parameters(config: SpeedrunConfig) -> dict[str, int]:
    plan = plan_parameters(config.pretrain.model)
    return {"total": plan.total, "active": plan.active}


def _tool_figures(results: Mapping[str, Any]) -> dict[str, Any]:
    """Set (a) by itself, the other sets beside it."""
    return {**_rate(results["held_out"]), "sets": {name: _rate(results[name]) for name in ("phrasings", "freehand")}}


def _rate(result: Mapping[str, Any]) -> dict[str, Any]:
    details = result["details"]
    return {
        "rate": result["value"],
        "n": result["n"],
        "stderr": result["stderr"],
        "answer_tokens": details["answer_tokens"]["value"],
        "failures": details["failures"],
        "by_domain": {name: group["value"] for name, group in result["groups"].items()},
    }


def _samples(out: Path, count: int) -> list[dict[str, str]]:
    """The first items of the free-hand set, whatever came of them."""
    return [
        {"stage": stage, "prompt": _question(item), "text": item["output"]}
        for stage in ("base", "rl")
        for item in _items(out, stage, "freehand")[:count]
    ]


def _question(item: Mapping[str, Any]) -> str:
    users = [message["content"] for message in item["details"]["messages"] if message["role"] == "user"]
    return " / ".join(users)


def _dialogues(out: Path, stage: str, count: int = 4) -> list[list[dict[str, Any]]]:
    """The first held-out dialogues as they went."""
    return [item["details"]["messages"] for item in _items(out, stage, "held_out")[:count]]


def _goals(report: Mapping[str, Any], out: Path) -> list[dict[str, Any]]:
    """The project's measures of this run, met or missed, told plainly."""
    tools = report["tool_success"]
    goals = [
        _goal("wall time", "at most 20 min", f"{report['wall_s'] / 60:.1f} min", report["wall_s"] <= WALL_GOAL_S),
        _goal(
            "peak memory",
            "at most 4 GB",
            f"{report['peak_rss_bytes'] / 1e9:.2f} GB",
            report["peak_rss_bytes"] <= MEMORY_GOAL_BYTES,
        ),
    ]
    for domain, found in report["val_bpb"].items():
        limit = report["xz_bpb"][domain] * (1.05 if domain == "code" else 1.0)
        name = f"bits per byte, {domain}"
        goals.append(_goal(name, f"below {limit:.3f} (from xz -9e)", f"{found:.3f}", found < limit))
    change = _last_change(report["metrics"]["sft"])
    if change is not None:
        measured = f"{change:+.1%} over the last quarter of the evaluations"
        goals.append(_goal("SFT validation loss", "flat: falls by less than 3%", measured, change > -0.03))
    rl, control = tools["rl"], tools["more_sft"]
    goals.append(_goal("RL, unseen values", "at least 90%", _percent(rl), rl["rate"] >= 0.9))
    phrasings = rl["sets"]["phrasings"]
    goals.append(_goal("RL, unseen phrasings", "at least 75%", _percent(phrasings), phrasings["rate"] >= 0.75))
    gain = _paired_gain(out)
    both_high = rl["rate"] > 0.95 and control["rate"] > 0.95
    measured = f"{gain.value:+.1%} ± {gain.stderr:.1%} (RL {_percent(rl)}, control {_percent(control)})"
    met = both_high or (gain.value > 0 and beyond_two_standard_errors(gain))
    goals.append(_goal("RL against more SFT", "two standard errors above, or both over 95%", measured, met))
    return goals


def _last_change(records: Sequence[StepRecord]) -> float | None:
    """Relative change of SFT's validation loss from three quarters of the way to the end; None with too few points."""
    losses = [value for record in records if (value := record.extra.get("val_loss")) is not None]
    if len(losses) < 4:
        return None
    return losses[-1] / losses[-1 - len(losses) // 4] - 1


def _paired_gain(out: Path) -> Estimate:
    """RL minus control on the same held-out items."""
    scores = [{item["id"]: item["score"] for item in _items(out, stage, "held_out")} for stage in ("rl", "more_sft")]
    shared = [name for name in scores[0] if scores[0][name] is not None and scores[1].get(name) is not None]
    return paired_difference([scores[0][name] for name in shared], [scores[1][name] for name in shared])


def _percent(figures: Mapping[str, Any]) -> str:
    return f"{figures['rate']:.1%} ± {figures['stderr']:.1%}, n {figures['n']}"


def _goal(name: str, goal: str, measured: str, met: bool) -> dict[str, Any]:
    return {"name": name, "goal": goal, "measured": measured, "met": met}
