"""The report's sections on what each stage can do: validation text, data, tool calls, benchmarks, critic, samples.

Each takes the whole report (`report.write_report` lists its keys) and returns
markup, "" where nothing was given. Left out: training curves (`curves.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openk2.observe.page import Raw, dialogue, escape, settings, table, text_block
from openk2.observe.svg import NUM_COLOURS, Axis, Bars, bar_chart

Report = Mapping[str, Any]

STAGES = {"base": "base", "sft": "SFT", "more_sft": "more SFT", "rl": "RL"}
_MAIN_SET = "(a) held-out numbers and names"
_SETS = {"phrasings": "(b) held-out phrasings", "freehand": "(c) written freely by hand"}


def stage_title(stage: object) -> str:
    return STAGES.get(str(stage), str(stage))


def chart_grid(charts: Sequence[str]) -> str:
    """Charts side by side, those with nothing to draw left out."""
    drawn = "".join(charts)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def rate(entry: Mapping[str, Any]) -> str:
    """95.0% ± 1.5 (n=200), as far as it is known."""
    if entry.get("rate") is None:
        return "-"
    error = f" ± {100 * entry['stderr']:.1f}" if entry.get("stderr") is not None else ""
    number = f" (n={entry['n']})" if entry.get("n") is not None else ""
    return f"{100 * entry['rate']:.1f}%{error}{number}"


def validation(report: Report) -> str:
    """Bits per byte by domain against xz, and after each stage."""
    ours, xz = report.get("val_bpb") or {}, report.get("xz_bpb") or {}
    by_stage = report.get("val_bpb_by_stage") or {}
    domains = list(dict.fromkeys([*ours, *(str(domain) for values in by_stage.values() for domain in values)]))
    if not domains:
        return ""
    axes = Axis("domain"), Axis("bits per byte (lower is better)", zero=True)
    pair = [Bars("this model", [ours.get(domain) for domain in domains])]
    pair += [Bars("xz -9e", [xz.get(domain) for domain in domains], colour=1)] if xz else []
    stages = [
        Bars(stage_title(stage), [values.get(domain) for domain in domains], colour=index % NUM_COLOURS)
        for index, (stage, values) in enumerate(by_stage.items())
    ]
    charts = [
        bar_chart("Held-out text: model and xz", domains, pair, *axes),
        bar_chart("Held-out text after each stage", domains, stages, *axes),
    ]
    columns = ["domain", "model", "xz -9e", "model / xz", *(f"after {stage_title(stage)}" for stage in by_stage)]
    rows = []
    for name in domains:
        compared = [ours.get(name), xz.get(name), _ratio(ours.get(name), xz.get(name))]
        rows.append([name, *compared, *(values.get(name) for values in by_stage.values())])
    return chart_grid(charts) + table(columns, rows, caption="Bits per byte of held-out documents")


def _ratio(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None


def synthesis(report: Report) -> str:
    return settings(report["synth"]) if report.get("synth") else ""


def tools(report: Report) -> str:
    """Success by stage and set with standard errors, answer length, and why the rest failed."""
    success = report.get("tool_success") or {}
    stages = [stage for stage in STAGES if stage in success] + [stage for stage in success if stage not in STAGES]
    if not stages:
        return ""
    labels = [stage_title(stage) for stage in stages]
    columns = [(_MAIN_SET, [success[stage] for stage in stages])]
    for name in dict.fromkeys(name for stage in stages for name in success[stage].get("sets") or {}):
        entries = [(success[stage].get("sets") or {}).get(name) or {} for stage in stages]
        columns.append((_SETS.get(name, str(name)), entries))
    bars = [
        Bars(title, [entry.get("rate") for entry in entries], [entry.get("stderr") for entry in entries], index)
        for index, (title, entries) in enumerate(columns)
    ]
    lengths = [Bars("", [success[stage].get("answer_tokens") for stage in stages])]
    charts = [
        bar_chart("Tool-call success", labels, bars, Axis("stage"), Axis("success", percent=True, zero=True)),
        bar_chart("Answer length", labels, lengths, Axis("stage"), Axis("mean tokens of an answer", zero=True)),
    ]
    rows = [[label, *(rate(entries[i]) for _, entries in columns)] for i, label in enumerate(labels)]
    caption = "Rate ± one standard error (the error bars), n in brackets; right tool, valid arguments and right answer"
    measured = table(["stage", *(title for title, _ in columns)], rows, caption=caption)
    return chart_grid(charts) + measured + _failures(success, stages)


def _failures(success: Mapping[str, Any], stages: Sequence[str]) -> str:
    counts = [success[stage].get("failures") or {} for stage in stages]
    rows = [
        [reason, *(entry.get(reason, 0) for entry in counts)] for reason in dict.fromkeys(r for e in counts for r in e)
    ]
    columns = ["failure", *(stage_title(stage) for stage in stages)]
    return "<h3>Why items of set (a) failed</h3>" + table(columns, rows) if rows else ""


def benchmarks(report: Report) -> str:
    """One row a task, one column a figure; a task given as a bare number is its score."""
    given = report.get("benchmarks") or {}
    entries = {name: entry if isinstance(entry, Mapping) else {"score": entry} for name, entry in given.items()}
    columns = list(dict.fromkeys(str(key) for entry in entries.values() for key in entry))
    rows = [[name, *(entry.get(column) for column in columns)] for name, entry in entries.items()]
    return table(["task", *(column.replace("_", " ") for column in columns)], rows) if rows else ""


def critic(report: Report) -> str:
    """How far the policy's ranking of its own samples can be trusted."""
    given = report.get("critic") or {}
    if not given:
        return ""
    measured = {"rate": given.get("agreement"), "n": given.get("pairs"), "stderr": given.get("stderr")}
    rows: list[list[object]] = [["agreement with the checked truth", rate(measured)]]
    known = ("agreement", "pairs", "stderr", "verdict")
    rows += [[str(key).replace("_", " "), value] for key, value in given.items() if key not in known]
    verdict = f'<p dir="auto"><b>{escape(given["verdict"])}</b></p>' if given.get("verdict") else ""
    return (
        f"{verdict}<p>The policy ranks pairs of its own samples; this is how often the ranking agrees with what "
        f"checking the samples found. A coin agrees in 50%.</p>{table(['what', 'measured'], rows)}"
    )


def samples(report: Report) -> str:
    """Unselected continuations, prompt and text."""
    given = report.get("samples") or ()
    content = ""
    for sample in given:
        content += f'<div class="sample"><span>{escape(stage_title(sample.get("stage", "")))}</span>'
        content += f'<div class="prompt">{text_block(str(sample.get("prompt", "")))}</div>'
        content += f"{text_block(str(sample.get('text', '')))}</div>"
    return f"<p>The first {len(given)}, not the best. The prompt is grey.</p>{content}" if given else ""


def trajectories(report: Report) -> str:
    """Dialogues before RL beside those after it."""
    given = report.get("trajectories") or {}
    before, after = _dialogues(given.get("before")), _dialogues(given.get("after"))
    content = ""
    for index in range(max(len(before), len(after))):
        content += f'<div class="pair">{_side("Before RL", before, index)}{_side("After RL", after, index)}</div>'
    return content


def _dialogues(given: Any) -> list[Sequence[Mapping[str, Any]]]:
    if not given:
        return []
    return [given] if isinstance(given[0], Mapping) else list(given)


def _side(title: str, dialogues: Sequence[Sequence[Mapping[str, Any]]], index: int) -> Raw:
    shown = dialogue(dialogues[index]) if index < len(dialogues) else text_block("")
    return Raw(f"<div><h3>{title}</h3>{shown}</div>")
