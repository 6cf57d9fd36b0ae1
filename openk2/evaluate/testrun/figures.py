"""From judged answers to the figures of a report.

A pass rate is the mean over prompts of the share of a prompt's samples that
passed; its interval counts prompts, not samples, which are not independent of
each other. What was not answered, and what has no check, is in no rate. A
figure that needs what the server did not tell covers the answers for which it
did, and says how many.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from openk2.evaluate.statistics import finite, mean, wilson
from openk2.evaluate.testrun.gather import Cell, Gathered
from openk2.evaluate.testrun.plan import Column, answers_for
from openk2.evaluate.testrun.replies import Reply
from openk2.evaluate.testrun.targets import Price

_MISSING = "-"
HEADINGS = ("target", "passed", "rate", "95% interval", "first token", "tokens/s", "tokens out", "cost", "unanswered")


def figures(gathered: Gathered) -> dict[str, Any]:
    """What report.json holds, but for where it came from."""
    return {
        "run": gathered.run,
        "summary": [column_figures(gathered, column) for column in gathered.columns],
        "categories": _categories(gathered),
        "prompts": [
            {
                "id": prompt.id,
                "title": prompt.title,
                "category": prompt.category,
                "hash": prompt.hash,
                "answers": {
                    column.target.name: [
                        cell_figures(cell, column.target.price)
                        for cell in gathered.cells[prompt.id, column.target.name]
                    ]
                    for column in gathered.columns
                },
            }
            for prompt in gathered.prompts
        ],
    }


def column_figures(gathered: Gathered, column: Column) -> dict[str, Any]:
    """A target's row of the summary."""
    cells = gathered.column(column.target.name)
    replies = [cell.answer.reply for cell in cells if cell.answer is not None and cell.answer.reply.fault is None]
    return {
        "target": column.target.name,
        "answers_for": answers_for(column.target),
        "model": column.target.model,
        "samples": column.samples,
        "seed": column.seed,
        "answered": len(replies),
        "unanswered": sum(cell.state == "unanswered" for cell in cells),
        "missing": sum(cell.state == "missing" for cell in cells),
        **pass_figures(cells),
        "failures": _failures(cells),
        **_speed_and_cost(replies, column.target.price),
    }


def pass_figures(cells: Iterable[Cell]) -> dict[str, Any]:
    """Passed of checked answers, and the rate over prompts with its interval."""
    by_prompt: dict[str, list[bool]] = {}
    for cell in cells:
        if cell.verdict.passed is not None:
            by_prompt.setdefault(cell.request.prompt.id, []).append(cell.verdict.passed)
    rate = mean([sum(passed) / len(passed) for passed in by_prompt.values()]).value
    return {
        "passed": sum(sum(passed) for passed in by_prompt.values()),
        "checked": sum(len(passed) for passed in by_prompt.values()),
        "checked_prompts": len(by_prompt),
        "pass_rate": finite(rate),
        "wilson_95": list(wilson(rate, len(by_prompt))) if by_prompt else None,
    }


def cell_figures(cell: Cell, price: Price | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "sample": cell.request.sample,
        "state": cell.state,
        "failure": cell.verdict.failure,
        "reason": cell.verdict.reason,
    }
    if cell.answer is None:
        return found
    reply = cell.answer.reply
    return found | {
        "asked_at": cell.answer.asked_at,
        "attempts": cell.answer.attempts,
        "finish_reason": reply.finish_reason,
        "first_token_s": reply.first_token_s,
        "total_s": reply.total_s,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "cost": cost(reply, price),
    }


def cost(reply: Reply, price: Price | None) -> float | None:
    """None where the price or the number of tokens is not known."""
    if price is None or reply.prompt_tokens is None or reply.completion_tokens is None:
        return None
    return price.of(reply.prompt_tokens, reply.completion_tokens)


def _speed_and_cost(replies: Sequence[Reply], price: Price | None) -> dict[str, Any]:
    counted = [reply for reply in replies if reply.prompt_tokens is not None and reply.completion_tokens is not None]
    costs = [known for reply in counted if (known := cost(reply, price)) is not None]
    first = mean([reply.first_token_s for reply in replies if reply.first_token_s is not None])
    return {
        "first_token_s": first.as_dict(),
        "tokens_per_s": _tokens_per_s(counted),
        "with_usage": len(counted),
        "prompt_tokens": sum(reply.prompt_tokens or 0 for reply in counted) if counted else None,
        "completion_tokens": sum(reply.completion_tokens or 0 for reply in counted) if counted else None,
        "cost": math.fsum(costs) if costs else None,
    }


def _tokens_per_s(counted: Sequence[Reply]) -> float | None:
    """Tokens after the first, over the seconds after the first."""
    tokens, seconds = 0, 0.0
    for reply in counted:
        if reply.first_token_s is not None and reply.total_s is not None and (reply.completion_tokens or 0) > 1:
            tokens += (reply.completion_tokens or 0) - 1
            seconds += reply.total_s - reply.first_token_s
    return tokens / seconds if seconds > 0 else None


def _failures(cells: Iterable[Cell]) -> dict[str, int]:
    """How often each was found, most frequent first."""
    counts: dict[str, int] = {}
    for cell in cells:
        if cell.verdict.failure:
            counts[cell.verdict.failure] = counts.get(cell.verdict.failure, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _categories(gathered: Gathered) -> dict[str, dict[str, Any]]:
    names = sorted({prompt.category for prompt in gathered.prompts})
    return {
        name: {
            column.target.name: pass_figures(
                cell for cell in gathered.column(column.target.name) if cell.request.prompt.category == name
            )
            for column in gathered.columns
        }
        for name in names
    }


def summary_rows(found: dict[str, Any]) -> list[list[str]]:
    """The summary as text, a row a target."""
    return [
        [
            row["target"],
            f"{row['passed']}/{row['checked']}",
            _MISSING if row["pass_rate"] is None else f"{row['pass_rate']:.0%}",
            _interval(row["wilson_95"]),
            _seconds(row["first_token_s"]["value"]),
            _MISSING if row["tokens_per_s"] is None else f"{row['tokens_per_s']:.1f}",
            _covering(row["completion_tokens"], "{:,}", row),
            _covering(row["cost"], "{:.4f}", row),
            str(row["unanswered"] + row["missing"]),
        ]
        for row in found["summary"]
    ]


def summary_table(found: dict[str, Any]) -> Table:
    """The summary for a terminal."""
    table = Table(title="test run", box=box.SIMPLE, padding=(0, 1, 0, 0), title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "target" else "right", no_wrap=True)
    for row in summary_rows(found):
        table.add_row(*(Text(value) for value in row))  # names hold no markup
    return table


def _interval(bounds: Sequence[float] | None) -> str:
    return _MISSING if bounds is None else f"{100 * bounds[0]:.0f} to {100 * bounds[1]:.0f}"


def _seconds(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.2f} s"


def _covering(value: float | None, form: str, row: dict[str, Any]) -> str:
    """A sum, with the number of answers that it is of where that is not all of them."""
    if value is None:
        return "unknown"
    part = "" if row["with_usage"] == row["answered"] else f" (of {row['with_usage']}/{row['answered']})"
    return form.format(value) + part
