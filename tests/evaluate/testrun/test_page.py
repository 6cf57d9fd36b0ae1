"""The page in a real browser: filters, keys, notes that last, and answers that stay text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from scripted_http import Asked, Said, serving, text

from openk2.evaluate.testrun import Report, RunSettings, Target, render_report, run_prompts
from openk2.observe.console import Console

WICKED = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u202e"
PROMPTS = {
    "a": {"prompt": "alpha", "category": "one", "check": {"contains": "alpha"}},
    "b": {"prompt": "beta", "category": "two", "check": {"contains": "nowhere"}},
    "c": {"prompt": f"gamma {WICKED}", "category": "two", "check": {"contains": "gamma"}},
}


@pytest.fixture()
def report(prompts: Callable[..., Path], tmp_path: Path, quick: Callable[..., RunSettings], console: Console) -> Report:
    def script(asked: Asked, n: int) -> Said:
        other = asked.body["model"] == "other" and asked.text == "alpha"
        return text("I do not know" if other else f"you said {asked.text}")

    with serving(script) as server:
        targets = [Target(server.url, "first", "echo"), Target(server.url, "second", "other")]
        # In a thread: playwright holds this one's event loop.
        with ThreadPoolExecutor(1) as thread:
            asked = (prompts(**PROMPTS), targets, tmp_path / "run")
            return thread.submit(run_prompts, *asked, settings=quick(), console=console).result()


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=str)
def page(request: pytest.FixtureRequest, browser: Any, report: Report) -> Iterator[Any]:
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, accept_downloads=True)
    opened = context.new_page()
    opened.said, opened.requests = [], []
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.on("request", lambda request: opened.requests.append(request.url))
    opened.goto(report.page.as_uri())
    yield opened
    assert opened.said == []
    context.close()


def shown(page: Any) -> list[str]:
    return page.locator(".prompt:visible .head > .muted").all_text_contents()


def test_it_fits_asks_for_nothing_and_runs_nothing_of_what_was_said(page: Any, report: Report) -> None:
    assert page.title() == "Test run" and page.locator("img").count() == 0
    assert [url for url in page.requests if not url.startswith("data:")] == [report.page.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    said = page.locator(".prompt").nth(2).locator(".said pre").first.text_content()
    assert said == "you said gamma " + WICKED.replace("\u202e", "\\u202e")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") in ("rgb(251, 251, 250)", "rgb(18, 20, 23)")


def test_filters(page: Any) -> None:
    assert shown(page) == ["a", "b", "c"]
    page.select_option("#category", "two")
    assert shown(page) == ["b", "c"]
    page.select_option("#verdict", "wrong")
    assert shown(page) == ["b"]
    page.select_option("#category", "")
    assert shown(page) == ["a", "b"]
    page.select_option("#verdict", "")
    page.select_option("#difference", "verdict")
    assert shown(page) == ["a"] and "1 of 3 prompts" in page.locator("#shown").text_content()
    page.select_option("#difference", "")
    page.fill("#text", "GAMMA")
    assert shown(page) == ["c"]


def test_keys(page: Any) -> None:
    def now() -> list[Any]:
        return [page.locator(selector).text_content() for selector in (".prompt.now .muted", ".column.now h3")]

    page.keyboard.press("j")
    assert now() == ["a", "first"]
    page.keyboard.press("j")
    page.keyboard.press("2")
    assert now() == ["b", "second"]
    page.keyboard.press("9")  # there is no such column
    page.keyboard.press("k")
    assert now() == ["a", "second"]
    page.keyboard.press("/")
    page.keyboard.type("j2")  # typed, not obeyed
    assert now() == ["a", "second"] and page.input_value("#text") == "j2"


def test_the_prompt_is_shown_when_it_is_opened(page: Any) -> None:
    first = page.locator(".prompt").first
    first.locator("summary").first.click()
    assert first.locator(".asked b").all_text_contents() == ["user", "check"]
    assert "alpha" in first.locator(".asked pre").first.text_content()


def test_notes_last_and_travel(page: Any, report: Report, tmp_path: Path) -> None:
    page.keyboard.press("j")
    page.keyboard.press("g")
    page.keyboard.press("n")
    page.keyboard.type("nice <b>one</b>")
    page.keyboard.press("Escape")
    with page.expect_download() as download:
        page.click("#export")
    path = tmp_path / "annotations.json"
    download.value.save_as(path)
    [mark] = json.loads(path.read_text())["annotations"].values()
    assert (mark["thumb"], mark["note"]) == ("up", "nice <b>one</b>")

    def first_mark() -> list[Any]:
        first = page.locator(".mark").first
        return [first.locator(".up").get_attribute("aria-pressed"), first.locator("textarea").input_value()]

    page.reload()
    assert first_mark() == ["true", "nice <b>one</b>"]  # kept by the browser
    page.evaluate("localStorage.clear()")
    page.reload()
    assert first_mark() == ["false", ""]
    page.set_input_files("#file", path)
    page.wait_for_function("document.querySelector('.mark textarea').value !== ''")
    assert first_mark() == ["true", "nice <b>one</b>"]  # imported
    page.evaluate("localStorage.clear()")
    shutil.copy(path, report.page.parent)
    render_report(report.page.parent)
    page.reload()
    assert first_mark() == ["true", "nice <b>one</b>"]  # from beside the report
    page.set_input_files("#file", {"name": "x.json", "mimeType": "application/json", "buffer": b'{"run": "other"}'})
    page.wait_for_function("document.getElementById('shown').textContent.includes('no notes of this run')")
