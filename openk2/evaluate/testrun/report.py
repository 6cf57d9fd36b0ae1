"""A test run's report: `report.json` with the figures and `report.html` with the answers side by side.

Both are made from the run folder alone, as often as one likes: a check that
was corrected judges the stored answers anew, and nothing is asked for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openk2.evaluate.testrun.annotations import read_annotations
from openk2.evaluate.testrun.code_checks import UnitTests
from openk2.evaluate.testrun.figures import HEADINGS, figures, summary_rows
from openk2.evaluate.testrun.gather import PROMPTS_FILE, Gathered, gather
from openk2.evaluate.testrun.page import PageColumn, render_page
from openk2.evaluate.testrun.plan import Column, RunRecord
from openk2.evaluate.testrun.prompts import as_lines, load_prompts
from openk2.evaluate.testrun.sandbox import PROCESS_LIMITS, sandbox_kind
from openk2.observe.files import write_atomic
from openk2.observe.page import escape, table

_WEAK = (
    "bubblewrap is not at hand: the code in answers ran under process limits only, which keep it neither from reading "
    "files nor from the network"
)
_CAPTION = (
    "The rate is over prompts, its interval Wilson's. Unanswered are faults and what was not asked; they are in no "
    "rate. Tokens/s counts the time after the first token. Cost is usage times price, without discounts."
)


@dataclass(frozen=True, slots=True)
class Report:
    """Where the page is, and the figures of report.json; `warnings` say what a reader has to know about them."""

    page: Path
    figures: Mapping[str, Any]
    warnings: tuple[str, ...]


def render_report(folder: Path | str, *, prompts: Path | str | None = None) -> Report:
    """Judge a folder's answers and write both files. With `prompts`, by their checks from now on."""
    folder = Path(folder)
    if prompts is not None:
        loaded = load_prompts(prompts)
        RunRecord.read(folder)  # refuses a folder that holds no test run before anything is written
        write_atomic(folder / PROMPTS_FILE, as_lines(loaded))
    gathered = gather(folder)
    sandbox = _sandbox(gathered)
    warnings = (_WEAK,) if sandbox == PROCESS_LIMITS else ()
    found = figures(gathered) | {"sandbox": sandbox, "warnings": list(warnings)}
    write_atomic(folder / "report.json", json.dumps(found, indent=2, ensure_ascii=True, allow_nan=False) + "\n")
    summary = table(HEADINGS, summary_rows(found), caption=_CAPTION)
    summary += "".join(f'<p class="warning">{escape(warning)}</p>' for warning in warnings)
    page = render_page(
        title="Test run",
        run=gathered.run,
        summary=summary,
        prompts=gathered.prompts,
        columns=[page_column(gathered, column, column.target.name) for column in gathered.columns],
        annotations=read_annotations(folder, gathered.run),
    )
    write_atomic(folder / "report.html", page)
    return Report(folder / "report.html", found, warnings)


def page_column(gathered: Gathered, column: Column, heading: str) -> PageColumn:
    """A column as the page shows it."""
    name = column.target.name
    cells = {prompt.id: gathered.cells[prompt.id, name] for prompt in gathered.prompts}
    return PageColumn(heading, column.target.model, column.target.price, cells)


def _sandbox(gathered: Gathered) -> str | None:
    """How the code in answers was run, None where there was none to run."""
    tested = any(isinstance(check, UnitTests) for prompt in gathered.prompts for check in prompt.checks)
    return sandbox_kind() if tested else None
