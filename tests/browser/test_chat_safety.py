"""What the chat page keeps to itself, and what could not run even by mistake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from chat_page import TOOLS, Opened
from running_server import CODEC, running
from scripted_engine import ScriptedEngine

from openk2.serve import page as page_package


def test_a_key_is_asked_for_and_kept_for_the_tab_only(browser: Any) -> None:
    engine = ScriptedEngine(CODEC)
    with running(engine, api_key="s3cret", tools=TOOLS, model_name="small") as server:
        opened = Opened(browser, server, engine)
        page = opened.page
        page.goto(server.url)
        page.fill("#key", "another")
        page.press("#key", "Enter")
        page.wait_for_selector("text=The server refused the key.")
        page.fill("#key", "s3cret")
        page.press("#key", "Enter")
        page.wait_for_selector("#offered .tool")
        opened.ask("hi", "Hello.")
        assert page.evaluate("Object.values(sessionStorage)") == ["s3cret"]
        assert "s3cret" not in page.evaluate("JSON.stringify(localStorage) + location.href + document.body.innerHTML")
        page.reload()
        page.wait_for_selector("#offered .tool")
        opened.close()


def test_the_policy_stops_what_a_mistake_would_let_in(opened: Opened) -> None:
    """Were markup ever made of text, the browser would refuse it."""
    refused = (
        "(() => { try { document.getElementById('log').innerHTML = '<i>'; return false } catch { return true } })()"
    )
    assert opened.page.evaluate(refused)
    assert opened.page.evaluate("fetch('http://127.0.0.1:9/').then(() => false, () => true)")
    assert any("Content Security Policy" in text for text in opened.messages)
    opened.messages.clear()
    opened.requests[:] = [request for request in opened.requests if ":9/" not in request.url]


def test_no_script_makes_markup_of_text() -> None:
    folder = Path(page_package.__file__).parent
    files = [path for path in folder.iterdir() if path.suffix in (".js", ".html")]
    assert len(files) > 5
    banned = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|setHTML|https?://(?!www\.w3\.org/2000/svg)"
    for path in files:
        assert re.findall(banned, path.read_text(encoding="utf-8")) == [], path.name
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\son\w+=|\sstyle=|<script>|<style", page)
