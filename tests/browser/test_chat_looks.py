"""The chat page's themes, and how it is on a phone."""

from __future__ import annotations

import json
import re
from typing import Any

from chat_page import Opened
from running_server import Running
from scripted_engine import ScriptedEngine, calling
from test_report_page import LUMINANCE


def test_both_themes_and_the_switch(browser: Any, server: Running, engine: ScriptedEngine) -> None:
    engine.replies.clear()
    for scheme, other in (("dark", "light"), ("light", "dark")):
        opened = Opened(browser, server, engine, color_scheme=scheme).load()
        opened.page.check("text=weekday")
        opened.ask("hi", calling(("weekday", '{"date": "2024-02-30"}')), "`a`\n\n```\nb\n```")
        background = "getComputedStyle(document.body).backgroundColor"
        first = opened.page.evaluate(background)
        assert weak_texts(opened.page) == []
        opened.page.click("#theme")
        assert opened.page.evaluate("document.documentElement.dataset.theme") == other
        second = opened.page.evaluate(background)
        assert (brightness(first) > brightness(second)) == (scheme == "light")
        assert weak_texts(opened.page) == []
        opened.page.reload()
        opened.page.wait_for_selector("#offered .tool")
        assert opened.page.evaluate(background) == second
        opened.close()


def weak_texts(page: Any) -> Any:
    """Texts whose contrast with what is behind them is less than 4.5."""
    return page.evaluate(
        f"""() => {{ {LUMINANCE}
            const behind = e => {{ while (e) {{ const c = getComputedStyle(e).backgroundColor;
                if (!c.endsWith(', 0)')) return c; e = e.parentElement; }} return 'rgb(255,255,255)'; }};
            return [...document.querySelectorAll('p, h1, h2, h3, h4, b, small, label, code, pre, span, button')]
                .filter(e => e.innerText && e.checkVisibility())
                .map(e => [e.outerHTML.slice(0, 60), contrast(getComputedStyle(e).color, behind(e))])
                .filter(([, ratio]) => ratio < 4.5); }}"""
    )


def brightness(colour: str) -> int:
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


def test_on_a_phone_nothing_is_wider_and_the_panel_is_a_drawer(
    browser: Any, server: Running, engine: ScriptedEngine
) -> None:
    engine.replies.clear()
    phone = {"viewport": {"width": 375, "height": 667}, "has_touch": True, "is_mobile": True}
    opened = Opened(browser, server, engine, **phone).load()
    page = opened.page
    assert not page.is_visible("#panel")
    page.click("#toggle-panel")
    page.check("text=calculator")
    assert page.evaluate("document.getElementById('main').inert")
    page.keyboard.press("Escape")
    page.wait_for_selector("#panel", state="hidden")
    wide = "x" * 200
    calls = calling(("calculator", json.dumps({"expression": "1+" * 80 + "1"})), content=wide)
    opened.ask(wide, calls, f"{wide}\n\n```\n{wide}\n```")
    page.click(".call summary")
    beyond = page.evaluate(
        "[...document.querySelectorAll('#main *, #head *')].filter(e => !e.closest('figure pre, .preview, svg'))"
        ".filter(e => e.getBoundingClientRect().right > 375.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert beyond == [] and page.evaluate("document.documentElement.scrollWidth") == 375
    assert page.evaluate("document.getElementById('log').scrollWidth <= document.getElementById('log').clientWidth")
    small = page.evaluate(
        "[...document.querySelectorAll('.icon, .round')].filter(e => e.checkVisibility())"
        ".map(e => e.getBoundingClientRect()).filter(r => r.width < 32 || r.height < 32).length"
    )
    assert small == 0
    opened.close()
