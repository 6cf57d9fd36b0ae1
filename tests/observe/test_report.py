"""The report shows what it is given, says what is missing, and no text gets out of its place."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from example_report import HOSTILE, example_report, tool_dialogue

from openk2.observe.curves import head_map
from openk2.observe.metrics import StepRecord
from openk2.observe.report import render, write_report

VOID = {"meta", "link"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers text, tags and ids."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        self.attributes |= set(values)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values["href"] or ""] if "href" in values else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + "\n"


def test_all_sections_are_there_and_linked() -> None:
    page = Page(render(example_report()))
    sections = [link[1:] for link in page.links if link.startswith("#")]
    assert set(sections) == {
        "goals", "pretraining", "experts", "validation", "synthesis", "sft", "rl", "tools", "benchmarks", "critic",
        "samples", "trajectories", "cost", "configuration",
    }  # fmt: skip
    assert set(sections) <= set(page.ids) and len(page.ids) == len(set(page.ids))
    assert "Not in this report" not in page.text


@pytest.mark.parametrize(
    "words",
    [
        "17m23s", "2.7 GiB", "95.0%", "± 1.5 (n=200)", "2 of 4 goals met.", "missed", "7.5% above", "3 of 4",
        "clipped above tau = 100", "Expert load at step 400", "no token chose it", "xz -9e", "1.075", "more SFT",
        "(c) written freely by hand", "no_call", "54.0% ± 4.5 (n=120)", "no better than a coin", "calls calculator",
        '{"expression": "17 * 23"}', "391", "17 times 23 is 371.", "8m18s", "what pretrain did", "The first 5",
        "pretrain.optim.qk_clip_tau", "mismatch KL, nats", "mean reward", "published k2",
        "not affiliated with Moonshot AI",
        "Mean reward 0.694 in the first quarter of the steps, 0.908 in the last.",
    ],
)  # fmt: skip
def test_the_page_tells(words: str) -> None:
    assert words in Page(render(example_report())).text


def test_nothing_in_the_page_reaches_outside() -> None:
    text = render(example_report())
    page = Page(text)
    assert page.tags.isdisjoint({"script", "img", "iframe", "object", "embed", "base", "form"})
    assert not {name for name in page.attributes if name.startswith("on") or name == "src"}
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "url(" not in text and "@import" not in text and "default-src 'none'" in text


@pytest.mark.parametrize("evil", HOSTILE)
def test_hostile_text_stays_text_wherever_it_stands(evil: str, tmp_path: Path) -> None:
    record = StepRecord(step=1, stage="rl", loss=1.0, tokens=1, tokens_per_s=1.0, wall_s=1.0, extra={evil: 0.5})
    report = {
        "name": evil, "command": evil, "commit": evil, "device": {evil: evil}, "config": {evil: {evil: [evil]}},
        "goals": [{"name": evil, "goal": evil, "measured": evil, "met": False}], "val_bpb": {evil: 1.0},
        "xz_bpb": {evil: 2.0}, "val_bpb_by_stage": {evil: {evil: 1.0}}, "benchmarks": {evil: {evil: evil}},
        "tool_success": {evil: {"rate": 0.5, "failures": {evil: 1}, "sets": {evil: {"rate": 0.1}}}},
        "stages": [{"name": evil, "wall_s": 1.0, "summary": evil}], "metrics": {"rl": [record], "sft": [record]},
        "samples": [{"prompt": evil, "text": evil, "stage": evil}], "critic": {evil: evil, "verdict": evil},
        "trajectories": {"before": [{"role": evil, "content": evil}], "after": tool_dialogue(evil)},
        "synth": {evil: evil}, "parameters": {evil: evil},
    }  # fmt: skip
    written = write_report(report, tmp_path).read_text()
    page = Page(written)
    assert page.tags.isdisjoint({"script", "img"}) and "\u202e" not in written and "\x1b" not in written
    assert page.text.count(evil[:12].replace("\u202e", "\\u202e")) >= 20
    assert json.loads((tmp_path / "report.json").read_text())["name"] == evil


def test_an_empty_report_says_what_is_missing() -> None:
    page = Page(render({}))
    for what in ("goals", "tool calls", "samples", "steps of pre-training", "steps of RL", "the critic's agreement"):
        assert what in page.text
    assert [link for link in page.links if link.startswith("#")] == ["#missing", "#missing"]


@pytest.mark.parametrize("key", sorted(example_report()))
def test_any_part_alone_makes_a_page(key: str) -> None:
    report = example_report()
    Page(render({key: report[key]}))
    Page(render({name: value for name, value in report.items() if name != key}))
    Page(render({key: None}))


def test_the_json_holds_the_figures_and_not_the_steps(tmp_path: Path) -> None:
    report = {**example_report(), "max_logit": math.nan}
    write_report(report, tmp_path)
    figures = json.loads(
        (tmp_path / "report.json").read_text(), parse_constant=lambda text: pytest.fail(f"{text} is not JSON")
    )
    assert set(figures) == set(report) - {"metrics"}
    assert figures["max_logit"] is None
    assert figures["tool_success"]["rl"] == report["tool_success"]["rl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_a_diverged_run_still_gets_its_page() -> None:
    records = [
        StepRecord(
            step=step, stage="pretrain", loss=loss, tokens=step, tokens_per_s=1.0, wall_s=1.0, grad_norm=norm,
            max_logit=logit, max_logits=((logit, math.nan),), expert_load=((math.nan, 1.0),),
        )
        for step, (loss, norm, logit) in enumerate([(9.0, 1.0, 5.0)] * 5 + [(math.nan, 0.0, math.inf)] * 3, start=1)
    ]  # fmt: skip
    page = render({"metrics": {"pretrain": records, "rl": records}})
    assert "Training loss" in page and not re.search(r'[dxy]="[^"]*(nan|inf)', page)


def test_the_flight_recorder_shows_each_heads_largest_logit_and_its_clips() -> None:
    """A row a head, a column a stretch of steps, its darkest shade at tau, a cross where the head was clipped."""
    records = [
        StepRecord(
            step=step, stage="pretrain", loss=1.0, tokens=1, tokens_per_s=1.0, wall_s=1.0,
            max_logits=((10.0, 50.0), (float(step), 5.0)),
            logit_bounds=((10.5, 52.0), (float(step), 5.0 + (step > 40))),
            gamma=((1.0, 1.0), (0.5, 1.0)) if step > 158 else (),
        )
        for step in range(1, 161)
    ]  # fmt: skip
    chart = ElementTree.fromstring(head_map(records, 100.0))
    shades = [path for path in chart.iter("path") if path.get("class") == "heat"]
    cells = {path.get("fill-opacity"): (path.get("d") or "").count("M") for path in shades}
    assert sum(cells.values()) == 4 * 80 - 1 and cells["0.50"] > 80  # two steps a column; the one crossed is no shade
    assert next(p for p in chart.iter("path") if p.get("class") == "dead").get("d", "").count("M") == 1
    words = " ".join(text.text or "" for text in chart.iter("text"))
    assert "100 (tau)" in words and "clipped" in words and "1.0" in words
    assert "4 heads over 160 steps, 1 of them clipped at least once" in head_map(records, 100.0)
    assert "exact maxima in 40 of 320 layer-steps" in head_map(records, 100.0)
    assert head_map([record for record in records if not record.max_logits], 100.0) == ""
    assert "Largest logit of every head" in render({"metrics": {"pretrain": records}})


def test_several_dialogues_stand_side_by_side() -> None:
    pair = {"before": [tool_dialogue("one"), tool_dialogue("two")], "after": [tool_dialogue("three")]}
    page = Page(render({"trajectories": pair}))
    assert page.text.count("Before RL") == 2 and page.text.index("two") > page.text.index("three")
    assert "(empty)" in page.text


def test_a_malformed_call_is_shown_as_it_is() -> None:
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": ["calc(", {"function": {"name": "a", "arguments": {"x": 1}}}],
    }
    text = Page(render({"trajectories": {"after": [message]}})).text
    assert "malformed call" in text and "calc(" in text and "calls a" in text and '{"x": 1}' in text
