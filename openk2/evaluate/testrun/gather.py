"""A run folder read back: each prompt's answers by column, judged by the checks as they are now.

Judging runs the code of coding answers again, in the sandbox. The folder may
belong to a run that is still going: what is not there is missing, no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from openk2.evaluate.testrun.plan import Column, Request, RunRecord, requests
from openk2.evaluate.testrun.prompts import Prompt, load_prompts
from openk2.evaluate.testrun.replies import Answer
from openk2.evaluate.testrun.store import read_answers
from openk2.evaluate.testrun.verdicts import Verdict

PROMPTS_FILE = "prompts.jsonl"


@dataclass(frozen=True, slots=True)
class Cell:
    """One sample; without an answer it has not been asked, or not since the prompt changed."""

    request: Request
    answer: Answer | None
    verdict: Verdict

    @property
    def state(self) -> str:
        """pass, fail, unchecked, unanswered or missing."""
        return "missing" if self.answer is None else self.verdict.name


@dataclass(frozen=True, slots=True)
class Gathered:
    """`cells` has the samples of each (prompt id, target name), of which `prompts` and `columns` give the order."""

    run: str
    prompts: Sequence[Prompt]
    columns: Sequence[Column]
    cells: Mapping[tuple[str, str], Sequence[Cell]]

    def column(self, name: str) -> list[Cell]:
        return [cell for prompt in self.prompts for cell in self.cells[prompt.id, name]]


def stored_prompts(folder: Path) -> list[Prompt]:
    """What the folder was last asked."""
    return load_prompts(folder / PROMPTS_FILE)


def gather(folder: Path, prompts: Sequence[Prompt] | None = None) -> Gathered:
    """The folder's answers to `prompts`, by default to those that it was last asked."""
    record = RunRecord.read(folder)
    prompts = stored_prompts(folder) if prompts is None else prompts
    answers = read_answers(folder)
    columns = list(record.columns.values())
    cells: dict[tuple[str, str], list[Cell]] = {}
    for request in requests(prompts, columns):
        answer = answers.get(request.key)
        verdict = Verdict(None, reason="not asked yet") if answer is None else request.prompt.judge(answer.reply)
        cells.setdefault((request.prompt.id, request.target), []).append(Cell(request, answer, verdict))
    return Gathered(record.run, prompts, columns, cells)
