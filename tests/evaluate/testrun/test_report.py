"""The report: figures that follow from the answers, and a page that shows what was said and obeys none of it."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole
from scripted_http import DONE, Asked, Said, calls, delta, refusal, serving, text

from openk2.evaluate.statistics import wilson
from openk2.evaluate.testrun import Price, Report, RunSettings, Target, render_report, run_prompts, summary_table
from openk2.observe.console import Console

WICKED = "</script><script>alert(1)</script>\u202e\u0007<img src=x onerror=alert(2)>"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {}}}}}
PROMPTS: dict[str, dict[str, Any]] = {
    "right": {"prompt": "right", "check": {"exact": "4"}, "category": "sums"},
    "wrong": {"prompt": "wrong", "check": {"exact": "4"}, "category": "sums"},
    "wicked": {"prompt": f"wicked {WICKED}", "check": {"contains": "no such"}},
    "called": {"prompt": "called", "tools": [TOOL], "check": {"tool_call": {"name": "look", "arguments": {"at": 1}}}},
    "open": {"prompt": "open"},
    "lost": {"prompt": "lost", "check": {"exact": "4"}},
}


def script(asked: Asked, n: int) -> Said:
    if asked.text == "right":
        return Said([delta(content="4"), 0.05, delta(finish="stop"), *text(tokens=(100, 11)).parts[-2:]])
    if asked.text == "called":
        return calls(("look", '{"at":1}'))
    if asked.text == "lost":
        return refusal(400, "lost")
    if asked.text == "open":
        return Said([delta(reasoning_content="hm"), delta(content="well"), delta(finish="stop"), DONE])  # no usage
    return text(WICKED if "wicked" in asked.text else "5", tokens=(50, 1))


@pytest.fixture()
def report(prompts: Callable[..., Path], tmp_path: Path, quick: Callable[..., RunSettings], console: Console) -> Report:
    with serving(script) as server:
        targets = [Target(server.url, "dear", price=Price(1.0, 10.0)), Target(server.url, "[b]plain[/b]")]
        return run_prompts(prompts(**PROMPTS), targets, tmp_path / "run", settings=quick(), console=console)


def test_the_figures_of_a_target(report: Report) -> None:
    dear, plain = report.figures["summary"]
    assert (dear["passed"], dear["checked"], dear["answered"], dear["unanswered"]) == (2, 4, 5, 1)
    assert dear["pass_rate"] == 0.5 and dear["wilson_95"] == list(wilson(0.5, 4))
    assert dear["failures"] == {"wrong": 2, "http_error": 1}
    assert (dear["with_usage"], dear["prompt_tokens"], dear["completion_tokens"]) == (4, 220, 21)
    assert dear["cost"] == pytest.approx((220 * 1.0 + 21 * 10.0) / 1e6) and plain["cost"] is None
    assert dear["first_token_s"]["n"] == 5
    answers = {entry["id"]: entry["answers"]["dear"][0] for entry in report.figures["prompts"]}
    seconds = [answers[name]["total_s"] - answers[name]["first_token_s"] for name in ("right", "called")]
    assert dear["tokens_per_s"] == pytest.approx((10 + 7) / sum(seconds))  # the tokens after the first
    by_category = report.figures["categories"]["sums"]["dear"]
    assert (by_category["passed"], by_category["checked"]) == (1, 2)


def test_the_figures_are_in_report_json(report: Report) -> None:
    stored = json.loads((report.page.parent / "report.json").read_text())
    assert stored == report.figures
    [right] = [entry for entry in stored["prompts"] if entry["id"] == "right"]
    [answer] = right["answers"]["dear"]
    assert (answer["state"], answer["finish_reason"], answer["prompt_tokens"]) == ("pass", "stop", 100)
    assert answer["cost"] == pytest.approx(0.00021)


def test_the_table_says_what_is_not_known(report: Report) -> None:
    screen = io.StringIO()
    RichConsole(file=screen, width=160).print(summary_table(report.figures))
    lines = screen.getvalue().splitlines()
    [dear] = [line for line in lines if "dear" in line]
    [plain] = [line for line in lines if "[b]plain[/b]" in line]
    assert "2/4" in dear and "50%" in dear and "21 (of 4/5)" in dear and "0.0004 (of 4/5)" in dear
    assert "unknown" in plain


def data_of(page: str) -> dict[str, Any]:
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(data)


def test_what_models_say_is_data_in_the_page(report: Report) -> None:
    page = report.page.read_text(encoding="utf-8")
    assert "alert(" not in re.sub(r'id="data">.*?</script>', "", page, flags=re.DOTALL)
    assert "</script><script>alert" not in page and "<img" not in page
    [wicked] = [prompt for prompt in data_of(page)["prompts"] if prompt["id"] == "wicked"]
    assert wicked["answers"][0][0]["content"] == WICKED
    assert "innerHTML" not in page and "insertAdjacent" not in page and "document.write" not in page


def test_only_the_pages_own_script_may_run_and_nothing_is_fetched(report: Report) -> None:
    page = report.page.read_text(encoding="utf-8")
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    [own] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    outside = re.sub(r'id="data">.*?</script>', "", page, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)=["'](?!data:)|https?://|@import|url\((?!data:)""", outside)


def test_the_page_has_all_that_is_known_of_an_answer(report: Report) -> None:
    page = data_of(report.page.read_text(encoding="utf-8"))
    by_id = {prompt["id"]: prompt for prompt in page["prompts"]}
    assert [column["name"] for column in page["columns"]] == ["dear", "[b]plain[/b]"]
    called = by_id["called"]["answers"][0][0]
    assert called["calls"] == [{"name": "look", "arguments": '{\n  "at": 1\n}'}]
    assert by_id["open"]["answers"][0][0]["reasoning"] == "hm"
    assert by_id["open"]["answers"][0][0]["completion_tokens"] is None
    assert json.loads(by_id["right"]["check"]) == {"exact": "4"}
    lost = by_id["lost"]["answers"][0][0]
    assert (lost["state"], lost["failure"], lost["reason"]) == ("unanswered", "http_error", "HTTP 400: lost")
    assert html.escape("[b]plain[/b]") in report.page.read_text(encoding="utf-8")


def test_notes_beside_the_report_are_read_in(report: Report) -> None:
    folder = report.page.parent
    key = data_of(report.page.read_text(encoding="utf-8"))["prompts"][0]["answers"][0][0]["key"]
    marks = {key: {"thumb": "up", "note": WICKED, "at": "2026-01-01T00:00:00Z"}}
    path = folder / "annotations.json"
    path.write_text(json.dumps({"run": report.figures["run"], "annotations": marks}))
    assert data_of(render_report(folder).page.read_text(encoding="utf-8"))["annotations"] == marks
    for wrong, expected in (
        ({"run": "another", "annotations": {}}, 'annotations.json: run: saw "another"'),
        ({"run": report.figures["run"], "annotations": {key: {"thumb": "sideways", "note": "", "at": ""}}}, "thumb"),
        ({"run": report.figures["run"]}, "saw no 'annotations'"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=expected):
            render_report(folder)


def test_weak_sandboxes_are_confessed(
    prompts: Callable[..., Path], tmp_path: Path, quick: Callable[..., RunSettings], console: Console
) -> None:
    check = {"unit_tests": "assert f() == 1", "entry_point": "f"}
    with serving(lambda asked, n: text("def f():\n    return 1")) as server:
        report = run_prompts(prompts(code={"prompt": "f?", "check": check}), [Target(server.url, "t")],
                             tmp_path / "run", settings=quick(), console=console)  # fmt: skip
    assert report.figures["summary"][0]["passed"] == 1
    weak = report.figures["sandbox"] == "process limits"
    assert weak or report.figures["sandbox"] == "bubblewrap"
    assert bool(report.warnings) is weak
    assert ("neither from reading files nor from the network" in report.page.read_text(encoding="utf-8")) is weak


def test_without_code_no_sandbox_is_named(report: Report) -> None:
    assert report.figures["sandbox"] is None and report.warnings == ()
