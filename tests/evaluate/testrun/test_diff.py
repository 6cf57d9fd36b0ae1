"""Two runs compared: what was fixed, broken, changed, and what could not be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_http import refusal, serving, text

from openk2.evaluate.testrun import RunDiff, RunSettings, Target, diff_runs, run_prompts
from openk2.evaluate.testrun.diff import sign_test
from openk2.observe.console import Console

BEFORE = {"fixed": "3", "broken": "4", "same": "4", "reworded": "4", "lost": "4", "open": "a"}
AFTER = {"fixed": "4", "broken": "3", "same": "4", "reworded": "It is 4", "lost": None, "open": "b"}


@pytest.fixture()
def run(
    prompts: Callable[..., Path], tmp_path: Path, quick: Callable[..., RunSettings], console: Console
) -> Callable[..., Path]:
    def make(name: str, said: dict[str, Any], *targets: str, **changed: Any) -> Path:
        given = {key: {"prompt": key, "check": {"numeric": 4}} for key in said} | {"open": {"prompt": "open"}} | changed

        def script(asked: Any, n: int) -> Any:
            return text(said[asked.text]) if said.get(asked.text) else refusal(400, "no")

        with serving(script) as server:
            wanted = [Target(server.url, target) for target in targets or ("t",)]
            run_prompts(prompts(**given), wanted, tmp_path / name, settings=quick(), console=console)
        return tmp_path / name

    return make


def only(diff: RunDiff) -> Any:
    [target] = diff.targets
    return target


def test_what_changed_is_told(run: Callable[..., Path], tmp_path: Path) -> None:
    diff = diff_runs(run("a", BEFORE), run("b", AFTER), out=tmp_path / "diff")
    found = only(diff)
    assert [(change.prompt, change.before, change.after) for change in found.fixed] == [("fixed", 0.0, 1.0)]
    assert [change.prompt for change in found.broken] == ["broken"]
    assert found.broken[0].reason == "wrong: saw 3, expected 4"
    assert found.answers_changed == ("broken", "fixed", "open", "reworded")
    assert (found.not_compared, found.other_prompt, found.compared) == (("lost",), (), 5)
    assert (found.change.value, found.change.n, found.p_value) == (0.0, 4, 1.0)
    stored = json.loads((tmp_path / "diff" / "diff.json").read_text())
    assert stored == json.loads(json.dumps(diff.as_dict()))
    said = diff.text()
    assert "t: 5 prompts compared" in said and "  broken: broken wrong: saw 3, expected 4" in said
    assert "1 fixed, 1 broken, sign test p = 1" in said
    page = (tmp_path / "diff" / "diff.html").read_text(encoding="utf-8")
    assert '"name": "t, before"' in page and '"name": "t, after"' in page


def test_a_run_does_not_differ_from_itself(run: Callable[..., Path]) -> None:
    folder = run("a", BEFORE)
    found = only(diff_runs(folder, folder))
    assert (found.fixed, found.broken, found.answers_changed, found.change.value) == ((), (), (), 0.0)


def test_a_prompt_that_asks_something_else_is_left_out(run: Callable[..., Path]) -> None:
    before = run("a", BEFORE)
    after = run("b", {**AFTER, "else": "4"}, fixed={"prompt": "else", "check": {"numeric": 4}})
    found = only(diff_runs(before, after))
    assert found.other_prompt == ("fixed",) and found.fixed == ()
    assert "not compared, the prompt asks something else: fixed" in diff_runs(before, after).text()


def test_both_are_judged_by_the_later_checks(run: Callable[..., Path]) -> None:
    before = run("a", {"one": "5"})
    after = run("b", {"one": "5"}, one={"prompt": "one", "check": {"numeric": 5}})
    found = only(diff_runs(before, after))
    assert (found.fixed, found.broken, found.change.n) == ((), (), 1)


def test_targets_are_matched_by_name_or_being_the_only_ones(run: Callable[..., Path]) -> None:
    first, second = run("a", BEFORE, "x", "y"), run("b", AFTER, "y", "z")
    assert [(target.before, target.after) for target in diff_runs(first, second).targets] == [("y", "y")]
    third, fourth = run("c", BEFORE, "step-1"), run("d", AFTER, "step-2")
    assert "step-1 -> step-2: 5 prompts compared" in diff_runs(third, fourth).text()
    with pytest.raises(ValueError, match="diff: saw targets x, y and step-2, expected a name in both runs"):
        diff_runs(first, fourth)


def test_significance_is_paired(run: Callable[..., Path]) -> None:
    names = [f"p{at}" for at in range(10)]
    before, after = run("a", dict.fromkeys(names, "3")), run("b", dict.fromkeys(names, "4"))
    found = only(diff_runs(before, after))
    assert found.change.value == 1.0 and found.p_value == pytest.approx(2 / 2**10)


def test_the_sign_test() -> None:
    assert sign_test(0, 0) == 1.0 and sign_test(1, 0) == 1.0
    assert sign_test(9, 1) == sign_test(1, 9) == pytest.approx(2 * 11 / 1024)
    assert sign_test(5, 5) == 1.0 and sign_test(6, 0) == pytest.approx(2 / 64)
