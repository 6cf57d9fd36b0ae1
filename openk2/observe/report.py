"""A run's report: the figures as `report.json` and one self-contained page, `report.html`.

The page needs no network, no script and no plotting library. It shows what it
is given, in the order a reader asks: did it reach its goals, how did training
go, what can each stage do, what does it say, what did it cost; and it lists
what was not given. Samples are shown as they come: the caller passes the first
ones, not the best.

Left out: any figure computed here that `report.json` does not hold, except the
summaries of curves that are drawn; per-step records stay in `metrics.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openk2.observe import sections
from openk2.observe.console import byte_size, duration, quantity
from openk2.observe.curves import engine_room_charts, expert_charts, rl_charts, rl_in_words, training_charts
from openk2.observe.files import write_atomic
from openk2.observe.metrics import StepRecord, json_safe
from openk2.observe.page import Raw, cell, escape, page, settings, share_bar, table
from openk2.observe.sections import STAGES, chart_grid, rate

_METRICS = {"pretrain": "pre-training", "sft": "SFT", "more_sft": "more SFT (the control)", "rl": "RL"}
_EXPECTED = {
    "goals": "goals",
    "val_bpb": "validation bits per byte",
    "xz_bpb": "xz for comparison",
    "synth": "the manifest of synthesised data",
    "tool_success": "tool calls",
    "benchmarks": "benchmarks",
    "critic": "the critic's agreement",
    "samples": "samples",
    "trajectories": "trajectories before and after RL",
    "stages": "time by stage",
    "config": "configuration",
}


def write_report(report: Mapping[str, Any], folder: Path | str) -> Path:
    """Write `report.json` and `report.html` into `folder`; returns the page's path.

    All keys are optional. Units: seconds, bytes, bits per byte, rates from 0 to
    1; a stderr is of the rate beside it.
      stage: of a page of one stage, which does not list what is missing;
      name, command, commit, config, device, seed, wall_s, peak_rss_bytes,
      max_logit, clipped_heads, parameters, benchmarks, synth (the manifest);
      goals: [{name, goal, measured, met}], met None where nothing was measured;
      val_bpb, xz_bpb: {domain: x}; val_bpb_by_stage: {stage: {domain: x}};
      tool_success: {base|sft|more_sft|rl: {rate, n, stderr, answer_tokens,
        failures: {reason: count}, sets: {phrasings|freehand: {rate, n, stderr}}}};
      stages: [{name, wall_s, peak_rss_bytes, summary}];
      metrics: {pretrain|sft|more_sft|rl: [StepRecord]}, which stay out of report.json;
      samples: [{prompt, text, stage}];
      trajectories: {before, after: messages of one dialogue, or a list of such};
      critic: {pairs, agreement, stderr, position_bias, verdict}.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {key: json_safe(value) for key, value in report.items() if key != "metrics"}
    write_atomic(folder / "report.json", json.dumps(figures, indent=2, allow_nan=False) + "\n")
    write_atomic(folder / "report.html", render(report))
    return folder / "report.html"


def render(report: Mapping[str, Any]) -> str:
    """The page as text."""
    metrics = report.get("metrics") or {}
    shown = [
        ("goals", "Goals", _goals(report)),
        ("pretraining", "Pre-training", _training(metrics.get("pretrain"), report)),
        ("experts", "Expert load", _experts(report)),
        ("validation", "Validation text", sections.validation(report)),
        ("synthesis", "Synthesised data", sections.synthesis(report)),
        ("sft", "Supervised fine-tuning", _fine_tuning(report)),
        ("rl", "Reinforcement learning", _reinforcement(metrics.get("rl"))),
        ("tools", "Tool calls by stage", sections.tools(report)),
        ("benchmarks", "Benchmarks", sections.benchmarks(report)),
        ("critic", "Trust in the critic", sections.critic(report)),
        ("samples", "Samples", sections.samples(report)),
        ("trajectories", "Before and after RL", sections.trajectories(report)),
        ("cost", "Time and memory", _cost(report)),
        ("configuration", "Configuration", _configuration(report)),
        ("missing", "Not in this report", "" if report.get("stage") else _missing(report, metrics)),
    ]
    name = str(report.get("name") or "openk2 run")
    footer = (
        "Written by openk2, an independent project that is not affiliated with Moonshot AI. "
        "The figures of this page are in report.json, those of each step in metrics.jsonl."
    )
    return page(name, _header(name, report), shown, footer)


def _header(name: str, report: Mapping[str, Any]) -> str:
    facts = [f"{label} {cell(report[key])}" for key, label in (("commit", "commit"), ("seed", "seed")) if key in report]
    device = report.get("device") or {}
    facts += [f"{escape(key.replace('_', ' '))} {cell(value)}" for key, value in device.items()]
    command = report.get("command")
    shown = " ".join(command) if isinstance(command, (list, tuple)) else command
    return (
        f'<h1 dir="auto">{escape(name)}</h1><p class="muted">{" · ".join(facts)}</p>'
        + (f'<code dir="auto">{escape(shown)}</code>' if shown else "")
    )  # fmt: skip


def _goals(report: Mapping[str, Any]) -> str:
    content = _cards(report)
    goals = report.get("goals") or ()
    if goals:
        met = sum(goal.get("met") is True for goal in goals)
        content += f"<p>{met} of {len(goals)} goals met.</p>"
        rows = [[goal.get("name"), _verdict(goal.get("met")), goal.get("measured"), goal.get("goal")] for goal in goals]
        content += table(["what", "verdict", "measured", "goal"], rows)
    return content


def _verdict(met: bool | None) -> Raw:
    style, word = {True: ("met", "met"), False: ("missed", "missed")}.get(met, ("unknown-verdict", "not measured"))  # type: ignore[arg-type]
    return Raw(f'<span class="verdict {style}">{word}</span>')


def _cards(report: Mapping[str, Any]) -> str:
    cards: list[tuple[str, str]] = []
    if report.get("wall_s") is not None:
        cards.append((duration(report["wall_s"]), "from process start to report"))
    if report.get("peak_rss_bytes") is not None:
        cards.append((byte_size(report["peak_rss_bytes"]), "peak resident memory"))
    success = report.get("tool_success") or {}
    for stage in ("rl", "more_sft", "sft", "base"):
        if stage in success:
            main, _, rest = rate(success[stage]).partition(" ")
            cards.append((main, f"tool-call success after {STAGES[stage]}, set (a) {rest}"))
            break
    below = [domain for domain in _shared(report) if report["val_bpb"][domain] < report["xz_bpb"][domain]]
    if _shared(report):
        cards.append((f"{len(below)} of {len(_shared(report))}", "domains compressed better than by xz -9e"))
    if report.get("max_logit") is not None:
        clipped = report.get("clipped_heads")
        cards.append((f"{report['max_logit']:.1f}", f"largest attention logit{_clips(clipped)}"))
    total = (report.get("parameters") or {}).get("total")
    if total is not None:
        cards.append((quantity(total), "parameters"))
    shown = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in cards
    )
    return f'<div class="cards">{shown}</div>' if cards else ""


def _clips(clipped: int | None) -> str:
    return "" if clipped is None else f"; {cell(clipped)} heads clipped"


def _shared(report: Mapping[str, Any]) -> list[str]:
    ours, xz = report.get("val_bpb") or {}, report.get("xz_bpb") or {}
    return [domain for domain in ours if ours[domain] is not None and xz.get(domain) is not None]


def _training(records: Sequence[StepRecord] | None, report: Mapping[str, Any]) -> str:
    if not records:
        return ""
    return chart_grid(training_charts(records, _find(report.get("config"), "qk_clip_tau"))) + _engine_room(records)


def _engine_room(records: Sequence[StepRecord]) -> str:
    charts = chart_grid(engine_room_charts(records))
    return f"<details><summary>Optimizer and speed</summary>{charts}</details>" if charts else ""


def _experts(report: Mapping[str, Any]) -> str:
    records = (report.get("metrics") or {}).get("pretrain") or ()
    return chart_grid(expert_charts(records, _find(report.get("config"), "first_k_dense_replace")))


def _fine_tuning(report: Mapping[str, Any]) -> str:
    metrics = report.get("metrics") or {}
    stages = (("sft", "SFT"), ("more_sft", "More SFT: the control for RL"))
    return "".join(
        f"<h3>{title}</h3>{_training(metrics[key], report)}" for key, title in stages if metrics.get(key)
    )  # fmt: skip


def _reinforcement(records: Sequence[StepRecord] | None) -> str:
    if not records:
        return ""
    return f"<p>{escape(rl_in_words(records))}</p>{chart_grid(rl_charts(records))}{_engine_room(records)}"


def _cost(report: Mapping[str, Any]) -> str:
    stages = report.get("stages") or ()
    if not stages:
        return ""
    longest = max((stage.get("wall_s") or 0.0 for stage in stages), default=0.0) or 1.0
    rows = [
        [
            stage.get("name"),
            duration(stage["wall_s"]) if stage.get("wall_s") is not None else None,
            share_bar((stage.get("wall_s") or 0.0) / longest),
            byte_size(stage["peak_rss_bytes"]) if stage.get("peak_rss_bytes") is not None else None,
            stage.get("summary") or "",
        ]
        for stage in stages
    ]
    return table(["stage", "time", "", "peak memory", "what it did"], rows)


def _configuration(report: Mapping[str, Any]) -> str:
    content = ""
    if report.get("parameters"):
        content += "<h3>Parameters</h3>" + settings(report["parameters"])
    if report.get("config"):
        content += f"<details><summary>Resolved configuration</summary>{settings(report['config'])}</details>"
    return content


def _missing(report: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    missing = [title for key, title in _EXPECTED.items() if not report.get(key)]
    missing += [f"steps of {title}" for key, title in _METRICS.items() if not metrics.get(key)]
    return f"<p>Not measured or not given: {', '.join(missing)}.</p>" if missing else ""


def _find(config: Any, name: str) -> Any:
    """The first value under `name` at any depth of nested settings, or None."""
    if not isinstance(config, Mapping):
        return None
    if name in config:
        return config[name]
    return next((found for value in config.values() if (found := _find(value, name)) is not None), None)
