"""Results as a terminal table: every figure with n and its standard error, chance and K2's published one beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich import box
from rich.table import Table

from openk2.evaluate.records import Result
from openk2.evaluate.statistics import Estimate, wilson

MISSING = "-"


def results_table(results: Mapping[str, Result], *, groups: bool = False) -> Table:
    """A row per task, and with `groups` an indented one per group; bits per byte always lists its domains."""
    table = Table(title="evaluation", box=box.SIMPLE, padding=(0, 1, 0, 0), title_justify="left")
    for heading in ("task", "measure", "result ± stderr", "95% interval", "n", "chance"):
        table.add_column(heading, justify="left" if heading in ("task", "measure") else "right", no_wrap=True)
    table.add_column("published", overflow="fold")  # what gives way where the terminal is narrow
    for name, result in results.items():
        table.add_row(
            name,
            result.metric.replace("_", " "),
            figure(result.estimate, result.metric),
            _interval(result.estimate, result.metric),
            str(result.estimate.n),
            MISSING if result.chance is None else f"{100 * result.chance:.0f}%",
            _published(result),
        )
        if result.metric == "bits_per_byte":
            for domain, row in result.details["domains"].items():
                beside = f"xz {row['xz_bpb']:.3f}"
                shown = figure(result.groups[domain], result.metric)
                table.add_row(f"  {domain}", "", shown, "", str(row["documents"]), MISSING, beside)
        elif groups and len(result.groups) > 1:
            for group, estimate in result.groups.items():
                shown = figure(estimate, result.metric)
                table.add_row(f"  {group}", "", shown, _interval(estimate, result.metric), str(estimate.n), "", "")
    return table


def figure(estimate: Estimate, metric: str) -> str:
    """`1.234 ± 0.010` for bits per byte, `56.7% ± 3.5` for rates; an undefined part is a dash."""
    scale, digits, unit = (1.0, 3, "") if metric == "bits_per_byte" else (100.0, 1, "%")
    if not math.isfinite(estimate.value):
        return MISSING
    spread = f"{scale * estimate.stderr:.{digits}f}" if math.isfinite(estimate.stderr) else MISSING
    return f"{scale * estimate.value:.{digits}f}{unit} ± {spread}"


def _interval(estimate: Estimate, metric: str) -> str:
    if metric == "bits_per_byte" or not math.isfinite(estimate.value):
        return MISSING
    low, high = wilson(estimate.value, estimate.n)
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _published(result: Result) -> str:
    if result.published is None:
        return MISSING
    shown = f"{100 * result.published['value']:.1f}% {result.published['column']}"
    # A figure for another selection of the problems says so.
    same = result.published["benchmark"].casefold() == result.task.casefold()
    return shown if same else f"{shown} ({result.published['benchmark']})"
