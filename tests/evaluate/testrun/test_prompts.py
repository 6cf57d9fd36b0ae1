"""Prompts from files: strict reading, hashes that follow what is asked, and a starter set that proves itself."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openk2.evaluate.testrun import STARTER, Prompt, failed_proofs, load_prompts
from openk2.evaluate.testrun.haystack import Haystack
from openk2.evaluate.testrun.prompts import as_lines
from openk2.evaluate.testrun.verdicts import FAILURES

ASK = {"category": "test", "prompt": "Why?"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
HAY = {"tokens_about": 500, "seed": 7, "needle": "The key is under the mat."}


def parse(**given: Any) -> Prompt:
    return Prompt.parse({**ASK, **given}, "p", "p.json")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"promt": "x"}, "p.json: saw an unknown key \"promt\", expected one of .*; did you mean prompt?"),
        ({"category": " "}, "p.json: category: saw \" \", expected text that is not blank"),
        ({"prompt": None}, "p.json: prompt: saw null"),
        ({"messages": [{"role": "user", "content": "x"}]}, "saw both of 'prompt' and 'messages'"),
        ({"max_tokens": 0}, "p.json: max_tokens: saw 0, expected a whole number of at least 1"),
        ({"max_tokens": True}, "p.json: max_tokens: saw true"),
        ({"temperature": 3}, "p.json: temperature: saw 3, expected a number from 0 to 2"),
        ({"tool_choice": "auto"}, "p.json: tool_choice: saw \"auto\" without tools"),
        ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice: saw \"maybe\", expected one of auto, none, required"),
        ({"tools": [TOOL, TOOL]}, "tools: saw .* expected names that differ"),
        ({"tools": [{**TOOL, "function": {"name": "x", "parameters": {"type": "thing"}}}]}, "a schema that is none"),
        ({"check": {}}, "check: saw {}, expected at least one check"),
        ({"check": {"exakt": "x"}}, "check: saw an unknown key \"exakt\", .*did you mean exact?"),
        ({"check": {"exact": []}}, "check.exact: saw \\[\\], expected a text, or a list of some"),
        ({"check": {"regex": "("}}, "check.regex: saw \"\\(\", expected a regular expression"),
        ({"check": {"numeric": "4"}}, "check.numeric: saw \"4\", expected a number"),
        ({"check": {"tolerance": 1}}, "saw 'tolerance' without 'numeric'"),
        ({"check": {"unit_tests": "assert f()"}}, "saw 'unit_tests' without 'entry_point'"),
        ({"check": {"unit_tests": "assert (", "entry_point": "f"}}, "check.unit_tests: saw .* expected Python"),
        ({"check": {"json_schema": {"$ref": "https://x.example/s"}}}, "references that point into the schema itself"),
        ({"check": {"json_schema": {"$ref": "#/$defs/x"}}}, "references that point into the schema itself"),
        ({"check": {"tool_call": {"name": "f", "schema": {}, "arguments": {}}}}, "both 'arguments' and 'schema'"),
        ({"haystack": HAY}, "haystack: saw {haystack} 0 times in the messages, expected it once"),
        ({"prompt": "{haystack}", "haystack": {**HAY, "depth": [0, 1]}}, "depth: saw \\[0, 1\\], expected as many"),
        ({"examples": {"god": "x"}}, "examples: saw an unknown key \"god\""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_in_one_line(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as raised:
        parse(**given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "messages: saw \\[\\], expected a list of messages"),
        ([{"role": "user"}], "messages\\[0\\]: saw no 'content'"),
        ([{"role": "bot", "content": "x"}], "messages\\[0\\].role: saw \"bot\""),
        ([{"role": "user", "content": None}], "messages\\[0\\].content: saw null"),
        ([{"role": "tool", "content": "x"}], "messages\\[0\\].tool_call_id"),
        ([{"role": "user", "content": "x", "text": "y"}], "messages\\[0\\]: saw an unknown key \"text\""),
    ],
)  # fmt: skip
def test_messages_are_read_strictly(messages: list[Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Prompt.parse({"category": "c", "messages": messages}, "p", "p.json")


def test_the_hash_follows_what_is_asked_and_nothing_else() -> None:
    same = [
        parse(title="x"), parse(category="y"), parse(check={"exact": "x"}), parse(examples={"good": "x"}),
        Prompt.parse({"category": "c", "messages": [{"role": "user", "content": "Why?"}]}, "other", "o.json"),
    ]  # fmt: skip
    assert {prompt.hash for prompt in same} == {parse().hash}
    others = [
        parse(prompt="How?"), parse(system="s"), parse(tools=[TOOL]), parse(tools=[TOOL], tool_choice="auto"),
        parse(max_tokens=5), parse(temperature=0),
    ]  # fmt: skip
    assert len({parse().hash, *(prompt.hash for prompt in others)}) == len(others) + 1


def test_folders_files_and_lines_hold_prompts(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps(ASK))
    (tmp_path / "more.jsonl").write_text(json.dumps({"id": "a", **ASK}) + "\n\n" + json.dumps({"id": "c", **ASK}))
    (tmp_path / "README.md").write_text("not a prompt")
    assert [prompt.id for prompt in load_prompts(tmp_path)] == ["a", "b", "c"]
    assert [prompt.id for prompt in load_prompts(tmp_path / "b.json")] == ["b"]
    (tmp_path / "more.jsonl").write_text(json.dumps({"id": "b", **ASK}))
    with pytest.raises(ValueError, match="more.jsonl:1: saw the id 'b', which .*b.json has; rename"):
        load_prompts(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "p.json: saw broken JSON .*line 1, column 2"),
        ("[]", "p.json: saw \\[\\], expected an object"),
        ('{"temperature": NaN}', "p.json: saw broken JSON"),
        ('{"prompt": "\\ud800"}', "half a surrogate pair"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ValueError, match=expected):
        load_prompts(tmp_path)


def test_a_folder_without_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="saw no prompts"):
        load_prompts(tmp_path)
    with pytest.raises(ValueError, match="saw no such prompts"):
        load_prompts(tmp_path / "absent")


def test_a_haystack_is_the_same_everywhere_and_as_long_as_was_asked() -> None:
    text = Haystack.parse({**HAY, "depth": 0.5}, "h").text()
    # A change of the generator changes every prompt made with it: it is then asked again.
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "868ec9a2075c5a5f"
    lines = text.split("\n")
    assert abs(lines.index(HAY["needle"]) - len(lines) / 2) <= 1 and lines.count(HAY["needle"]) == 1
    assert abs(len(text.split()) * 4 / 3 - 500) < 80
    assert text != Haystack.parse({**HAY, "seed": 8}, "h").text()


def test_needles_stand_in_order_of_their_depths() -> None:
    given = {"tokens_about": 300, "seed": 1, "needle": ["first", "second", "third"]}
    lines = Haystack.parse(given, "h").text().split("\n")
    places = [lines.index(needle) for needle in given["needle"]]
    assert places == sorted(places) and places[0] > 0 and places[-1] < len(lines) - 1


def test_prompts_can_be_written_and_read_again(tmp_path: Path) -> None:
    starter = load_prompts(STARTER)
    (tmp_path / "prompts.jsonl").write_text(as_lines(starter), encoding="utf-8")
    again = load_prompts(tmp_path / "prompts.jsonl")
    assert [(p.id, p.hash, p.checks) for p in again] == [(p.id, p.hash, p.checks) for p in starter]


def test_the_starter_set_is_broad_and_every_check_proves_itself() -> None:
    starter = load_prompts(STARTER)
    categories = {prompt.category for prompt in starter}
    assert {"chat", "coding", "mathematics", "reasoning", "tool use", "Chinese", "long context"} == categories
    checked = [prompt for prompt in starter if prompt.checks]
    assert len(starter) >= 40 and len(checked) >= len(starter) - 2
    assert all(prompt.good and prompt.bad for prompt in checked)
    assert failed_proofs(starter) == []


def test_a_check_that_does_not_hold_is_told(prompts: Callable[..., Path]) -> None:
    folder = prompts(one={"prompt": "2+2?", "check": {"numeric": 4}, "examples": {"good": ["5", "4"], "bad": "4"}})
    told = failed_proofs(load_prompts(folder))
    assert [line.partition(": saw")[0] for line in told] == ["one: good example 1", "one: bad example 1"]


def test_the_guide_tells_the_truth(repository: Path) -> None:
    guide = (repository / "docs" / "guides" / "test-runs.md").read_text(encoding="utf-8")
    starter = load_prompts(STARTER)
    checked = sum(bool(prompt.checks) for prompt in starter)
    assert f"`starter` names {len(starter)} prompts" in guide and f"{checked} of them" in guide
    [example] = re.findall(r"```json\n(.*?)```", guide, re.DOTALL)
    assert failed_proofs([Prompt.parse(json.loads(example), "example", "guide")]) == []
    for failure in FAILURES:
        assert f"`{failure}`" in guide
