"""The report in a real browser: it fits, reads in both themes, and asks the network for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from example_report import example_report

from openk2.observe.report import write_report

LUMINANCE = """
const parts = c => c.match(/[\\d.]+/g).map(Number);
const lin = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const lum = c => { const [r, g, b] = parts(c); return 0.2126 * lin(r) + 0.7152 * lin(g) + 0.0722 * lin(b); };
const contrast = (a, b) => { const [x, y] = [lum(a), lum(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
"""


class Opened:
    """A page with what the browser said and asked for while it loaded."""

    def __init__(self, browser: Any, path: Path, width: int, scheme: str) -> None:
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")


@pytest.fixture(scope="module")
def report_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(example_report(), tmp_path_factory.mktemp("report"))


@pytest.fixture(params=[(1280, "light"), (390, "dark"), (390, "light"), (1280, "dark")], scope="module", ids=str)
def opened(request: pytest.FixtureRequest, browser: Any, report_path: Path) -> Iterator[Opened]:
    view = Opened(browser, report_path, *request.param)
    yield view
    view.page.close()


def test_it_loads_alone_and_in_silence(opened: Opened, report_path: Path) -> None:
    assert opened.messages == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [report_path.as_uri()]
    assert opened.page.title() == "Speedrun"


def test_nothing_is_wider_than_the_window(opened: Opened) -> None:
    assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    beyond = opened.page.evaluate(
        "[...document.querySelectorAll('section > *, figure, pre, .card, .sample, header > *')]"
        ".filter(e => e.getBoundingClientRect().right > window.innerWidth + 0.5 || e.scrollWidth > e.clientWidth + 1)"
        ".filter(e => !e.matches('.scroll, code')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert beyond == []


def test_both_axes_of_every_chart_are_named_and_legible(opened: Opened) -> None:
    charts = opened.page.evaluate(
        """[...document.querySelectorAll('svg')].map(svg => {
            const box = svg.getBoundingClientRect();
            const texts = [...svg.querySelectorAll('text')].map(t => t.getBoundingClientRect());
            return {name: svg.getAttribute('aria-label'),
                    axes: [...svg.querySelectorAll('.axis')].map(t => t.textContent.trim()),
                    smallest: Math.min(...texts.map(r => r.height)),
                    outside: texts.filter(r => r.left < box.left - 1 || r.right > box.right + 3
                                               || r.top < box.top - 1 || r.bottom > box.bottom + 3).length};
        })"""
    )
    assert len(charts) > 30
    for chart in charts:
        assert len(chart["axes"]) == 2 and all(chart["axes"]), chart
        assert chart["smallest"] >= 11 and chart["outside"] == 0, chart


def test_tick_labels_do_not_overlap(opened: Opened) -> None:
    clashes = opened.page.evaluate(
        """[...document.querySelectorAll('svg')].flatMap(svg => {
            const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
            return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
                .filter(([b, q]) => p.left < q.right - 1 && q.left < p.right - 1
                                    && p.top < q.bottom - 4 && q.top < p.bottom - 4)
                .map(([b]) => `${svg.getAttribute('aria-label')}: ${a} / ${b}`));
        })"""
    )
    assert clashes == []


def test_text_stands_out_from_its_background(opened: Opened) -> None:
    weak = opened.page.evaluate(
        f"""() => {{ {LUMINANCE}
            const behind = e => {{ while (e) {{ const c = getComputedStyle(e).backgroundColor;
                if (!c.endsWith(', 0)')) return c; e = e.parentElement; }} return 'rgb(255,255,255)'; }};
            const texts = [...document.querySelectorAll('p, th, td, pre, a, b, span, caption, summary, footer')]
                .map(e => [e.className || e.tagName, contrast(getComputedStyle(e).color, behind(e)), 4.5]);
            const marks = [...document.querySelectorAll('svg .line, svg .ref')]
                .map(e => [e.getAttribute('class'), contrast(getComputedStyle(e).stroke, behind(e)), 3]);
            return [...texts, ...marks].filter(([, ratio, least]) => ratio < least); }}"""
    )
    assert weak == []


def test_hostile_text_did_nothing(opened: Opened) -> None:
    assert opened.page.evaluate("document.scripts.length + document.images.length") == 0
    assert opened.page.locator(".sample pre").filter(has_text="<script>document.title").count() == 1
