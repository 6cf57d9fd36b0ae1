"""Two runs compared: which checks changed, which answers did, and whether the change is more than chance.

Both runs are judged by the later one's checks, so that a corrected check is no
change. Only prompts that asked the same in both, and were answered in both,
are compared. Invariant: significance is paired, prompt by prompt. Left out: a
correction for having compared many targets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openk2.evaluate.statistics import Z_95, Estimate, finite, paired_difference
from openk2.evaluate.testrun.gather import Cell, Gathered, gather, stored_prompts
from openk2.evaluate.testrun.page import render_page
from openk2.evaluate.testrun.plan import Column, RunRecord
from openk2.evaluate.testrun.report import page_column
from openk2.observe.files import write_atomic
from openk2.observe.page import Raw, escape, table


@dataclass(frozen=True, slots=True)
class Change:
    """A prompt whose check came out otherwise: shares of its samples that passed, and why one failed."""

    prompt: str
    before: float
    after: float
    reason: str


@dataclass(frozen=True, slots=True)
class TargetDiff:
    """One target of the earlier run against one of the later.

    `change` is of the pass rate, over the prompts that have a check; `p_value` is the two-sided sign test's over the
    prompts that were fixed and broken; `other_prompt` are ids that ask something else now.
    """

    before: str
    after: str
    fixed: tuple[Change, ...]
    broken: tuple[Change, ...]
    answers_changed: tuple[str, ...]
    compared: int
    other_prompt: tuple[str, ...]
    not_compared: tuple[str, ...]  # missing or unanswered in one of the runs
    change: Estimate
    p_value: float


@dataclass(frozen=True, slots=True)
class RunDiff:
    targets: tuple[TargetDiff, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "targets": [
                {**asdict(target), "change": target.change.as_dict(), "interval_95": _interval(target.change)}
                for target in self.targets
            ]
        }

    def text(self) -> str:
        """What a terminal shows."""
        return "\n\n".join("\n".join(_lines(target)) for target in self.targets)


def diff_runs(before: Path | str, after: Path | str, *, out: Path | str | None = None) -> RunDiff:
    """Compare two run folders; with `out`, write diff.json and diff.html into that folder.

    Targets are matched by name, or, where each run has only one, with each other. ValueError where none match.
    """
    later = gather(Path(after))
    earlier = gather(Path(before), later.prompts)
    pairs = _pairs(earlier, later)
    asked_before = _hashes(Path(before))
    found = RunDiff(tuple(_compare(earlier, later, old, new, asked_before) for old, new in pairs))
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(found.as_dict(), indent=2, ensure_ascii=True, allow_nan=False)
        write_atomic(folder / "diff.json", content + "\n")
        write_atomic(folder / "diff.html", _page(earlier, later, pairs, found))
    return found


def sign_test(fixed: int, broken: int) -> float:
    """The two-sided probability of a split at least as uneven, were each change as likely either way."""
    total = fixed + broken
    tail = sum(math.comb(total, at) for at in range(min(fixed, broken) + 1))
    return min(1.0, 2.0 * tail / 2**total)


def _pairs(earlier: Gathered, later: Gathered) -> list[tuple[Column, Column]]:
    old = {column.target.name: column for column in earlier.columns}
    new = {column.target.name: column for column in later.columns}
    pairs = [(old[name], new[name]) for name in new if name in old]
    if not pairs and len(old) == len(new) == 1:
        pairs = [(earlier.columns[0], later.columns[0])]
    if not pairs:
        raise ValueError(
            f"diff: saw targets {', '.join(old)} and {', '.join(new)}, expected a name in both runs or one target "
            "each; give them equal name="
        )
    return pairs


def _hashes(folder: Path) -> Mapping[str, str]:
    """What the earlier run's prompts asked, by id."""
    RunRecord.read(folder)
    return {prompt.id: prompt.hash for prompt in stored_prompts(folder)}


def _compare(
    earlier: Gathered, later: Gathered, old: Column, new: Column, asked_before: Mapping[str, str]
) -> TargetDiff:
    changed: list[str] = []
    others: list[str] = []
    skipped: list[str] = []
    fixed: list[Change] = []
    broken: list[Change] = []
    shares: list[tuple[float, float]] = []
    compared = 0
    for prompt in later.prompts:
        if asked_before.get(prompt.id, prompt.hash) != prompt.hash:
            others.append(prompt.id)
            continue
        was, now = earlier.cells[prompt.id, old.target.name], later.cells[prompt.id, new.target.name]
        was, now = _answered(was), _answered(now)
        if not was or not now:
            skipped.append(prompt.id)
            continue
        compared += 1
        if _said(was) != _said(now):
            changed.append(prompt.id)
        if prompt.checks:
            shares.append((_share(was), _share(now)))
            if _share(was) != _share(now):
                improved = _share(now) > _share(was)
                reason = _reason(was if improved else now)
                (fixed if improved else broken).append(Change(prompt.id, *shares[-1], reason))
    return TargetDiff(
        before=old.target.name,
        after=new.target.name,
        fixed=tuple(fixed),
        broken=tuple(broken),
        answers_changed=tuple(changed),
        compared=compared,
        other_prompt=tuple(others),
        not_compared=tuple(skipped),
        change=paired_difference([now for _, now in shares], [was for was, _ in shares]),
        p_value=sign_test(len(fixed), len(broken)),
    )


def _answered(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.state not in ("missing", "unanswered")]


def _said(cells: Sequence[Cell]) -> list[object]:
    return [
        (cell.answer.reply.content, [(call.name, call.arguments) for call in cell.answer.reply.tool_calls])
        for cell in cells
        if cell.answer is not None
    ]


def _share(cells: Sequence[Cell]) -> float:
    return sum(cell.verdict.passed is True for cell in cells) / len(cells)


def _reason(cells: Sequence[Cell]) -> str:
    """Why the first that failed did."""
    return next((f"{cell.verdict.failure}: {cell.verdict.reason}" for cell in cells if not cell.verdict.passed), "")


def _interval(change: Estimate) -> list[float] | None:
    if finite(change.value) is None or finite(change.stderr) is None:
        return None
    return [change.value - Z_95 * change.stderr, change.value + Z_95 * change.stderr]


def _lines(target: TargetDiff) -> list[str]:
    name = target.before if target.before == target.after else f"{target.before} -> {target.after}"
    lines = [f"{name}: {target.compared} prompts compared"]
    if finite(target.change.value) is not None:
        bounds = _interval(target.change)
        spread = f" (95%: {100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f})" if bounds else ""
        lines.append(
            f"  passed: {100 * target.change.value:+.1f} points over {target.change.n} checked prompts{spread}; "
            f"{len(target.fixed)} fixed, {len(target.broken)} broken, sign test p = {target.p_value:.3g}"
        )
    for word, changes in (("fixed", target.fixed), ("broken", target.broken)):
        lines += [f"  {word}: {change.prompt} {_shares(change)}{change.reason}" for change in changes]
    for word, prompts in (
        ("answers changed", target.answers_changed),
        ("not compared, the prompt asks something else", target.other_prompt),
        ("not compared, no answer in one of the runs", target.not_compared),
    ):
        if prompts:
            lines.append(f"  {word}: {', '.join(prompts)}")
    return lines


def _shares(change: Change) -> str:
    """The shares, where several samples make them worth saying."""
    whole = {change.before, change.after} <= {0.0, 1.0}
    return "" if whole else f"{change.before:.0%} -> {change.after:.0%} "


def _page(earlier: Gathered, later: Gathered, pairs: Sequence[tuple[Column, Column]], found: RunDiff) -> str:
    rows = [
        [
            target.before if target.before == target.after else f"{target.before} -> {target.after}",
            f"{100 * target.change.value:+.1f}" if finite(target.change.value) is not None else None,
            len(target.fixed),
            len(target.broken),
            Raw(f"{target.p_value:.3g}"),
            len(target.answers_changed),
            target.compared,
        ]
        for target in found.targets
    ]
    headings = ["target", "points", "fixed", "broken", "sign test p", "answers changed", "prompts compared"]
    columns = [
        page_column(run, column, f"{column.target.name}, {when}")
        for old, new in pairs
        for run, column, when in ((earlier, old, "before"), (later, new, "after"))
    ]
    return render_page(
        title="Two test runs",
        run=f"{earlier.run}-{later.run}",
        summary=table(headings, rows, caption="Both runs are judged by the later one's checks") + _notes(found),
        prompts=later.prompts,
        columns=columns,
        annotations={},
    )


def _notes(found: RunDiff) -> str:
    return f"<pre>{escape(found.text())}</pre>"
