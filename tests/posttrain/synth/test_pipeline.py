"""Synthesis from end to end: the same bytes again, honest counts, well-formed trajectories."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openk2.config.run import SynthConfig
from openk2.posttrain.synth import synthesise
from openk2.posttrain.synth.agents import roster
from openk2.posttrain.synth.kinds import TOOL_WEIGHTS, TRAINING_FACTORS
from openk2.posttrain.synth.tasks import make_task, phrase
from openk2.protocols import task_from_dict

Synthesised = tuple[Path, dict[str, Any], list[dict[str, Any]]]
CONFIG = SynthConfig(attempts=600, plain_fraction=0.2, error_rate=0.1, seed=5)


@pytest.fixture(scope="module")
def synthesised(tmp_path_factory: pytest.TempPathFactory) -> Synthesised:
    """One small synthesis: its folder, its manifest, its trajectories."""
    folder = tmp_path_factory.mktemp("synth")
    manifest = synthesise(CONFIG, folder)
    lines = (folder / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    return folder, manifest, [json.loads(line) for line in lines]


def test_the_same_config_gives_the_same_bytes(synthesised: Synthesised, tmp_path: Path) -> None:
    small = replace(CONFIG, attempts=80)
    assert synthesise(small, tmp_path / "a") == synthesise(small, tmp_path / "b")
    first, second = ((tmp_path / name / "trajectories.jsonl").read_bytes() for name in "ab")
    assert first == second
    synthesise(replace(small, seed=6), tmp_path / "c")
    assert (tmp_path / "c" / "trajectories.jsonl").read_bytes() != first


def _dialogues(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] != "critique"]


def test_the_counts_add_up(synthesised: Synthesised) -> None:
    folder, manifest, lines = synthesised
    assert manifest["attempted"] == {"tool": 600, "plain": 120, "critique": 60}
    assert sum(manifest["kept"].values()) == len(lines)
    assert sum(manifest["kept"].values()) + sum(manifest["rejected"].values()) == 780
    assert sum(manifest["by_domain"].values()) == len(lines)
    assert sum(manifest["by_user_turns"].values()) == len(lines)
    assert manifest["kept"]["tool"] == sum(line["kind"] == "tool" for line in lines)
    assert manifest["teacher_errors"]["dialogues"] > 40 and manifest["teacher_errors"]["kept"] == 0
    reasons = manifest["rejected"]
    others = reasons.get("duplicate", 0) + reasons.get("undecided pair", 0)
    assert sum(reasons.values()) == manifest["teacher_errors"]["dialogues"] + others
    assert manifest == json.loads((folder / "manifest.json").read_text())


def test_the_hash_is_the_files(synthesised: Synthesised) -> None:
    folder, manifest, lines = synthesised
    data = (folder / "trajectories.jsonl").read_bytes()
    entry = manifest["files"]["trajectories.jsonl"]
    assert entry == {"lines": len(lines), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_trajectories_are_openai_messages_with_k2_call_ids(synthesised: Synthesised) -> None:
    calls = 0
    dialogues = _dialogues(synthesised[2])
    for line in dialogues:
        assert set(line) == {"id", "task", "messages", "tools", "outcome", "rubric_scores", "seed", "kind"}
        assert line["outcome"]["success"] and all(line["rubric_scores"].values())
        declared = {spec["function"]["name"] for spec in line["tools"]}
        assert declared == set(task_from_dict(line["task"]).tools)
        index = 0
        for message in line["messages"]:
            for call in message.get("tool_calls", ()):
                assert call["id"] == f"functions.{call['function']['name']}:{index}"
                assert call["function"]["name"] in declared
                json.loads(call["function"]["arguments"])
                index += 1
        assert line["messages"][-1]["role"] == "assistant"
        calls += index
    assert calls > len(dialogues) / 2


def test_no_dialogue_stands_twice(synthesised: Synthesised) -> None:
    dialogues = _dialogues(synthesised[2])
    said = [json.dumps([m for m in line["messages"] if m["role"] != "system"]) for line in dialogues]
    tools = [json.dumps(line["task"]["tools"]) for line in dialogues]
    assert len(set(zip(said, tools, strict=True))) == len(said)


def test_pairs_for_the_critic_have_one_right_reply_in_either_place(synthesised: Synthesised) -> None:
    lines = [line for line in synthesised[2] if line["kind"] == "critique"]
    assert {line["messages"][-1]["content"] for line in lines} == {"A", "B"}
    for line in lines:
        shown = line["messages"][1]["content"]
        first, second = shown.split("\nA:\n")[1].removesuffix("\nWhich is better, A or B?").split("\nB:\n")
        assert first != second
    seen = {line["task"]["turns"][-1]["user"] for line in _dialogues(synthesised[2])}
    assert sum(line["messages"][1]["content"].split("\nA:\n")[0] in seen for line in lines) < len(lines) / 10


def test_variety(synthesised: Synthesised) -> None:
    """Every tool, one to three on offer, a quarter with two turns, some turns without a call, some with two."""
    lines = synthesised[2]
    tool_lines = [line for line in lines if line["kind"] == "tool"]
    assert set(TOOL_WEIGHTS) <= {line["task"]["domain"] for line in tool_lines}
    assert {len(line["tools"]) for line in tool_lines} == {1, 2, 3}
    two_turns = sum(len(line["task"]["turns"]) == 2 for line in tool_lines) / len(tool_lines)
    assert 0.14 < two_turns < 0.3
    turns = [turn for line in tool_lines for turn in line["task"]["turns"]]
    assert 0.04 < sum(not turn["calls"] for turn in turns) / len(turns) < 0.2
    assert any(len(turn["calls"]) == 2 for turn in turns)
    assert all(line["tools"] == [] for line in lines if line["kind"] == "plain")


def test_training_asks_more_often_for_what_is_learnt_late() -> None:
    """Of first requests: a tool's share in training over its share as users ask is its factor, beside weekday's."""
    train, asked = (
        Counter(make_task(7, index, held_out=held_out).task.domain for index in range(700))
        for held_out in (False, True)
    )
    for tool in ("calculator", "date_shift"):
        ratio = (train[tool] / asked[tool]) / (train["weekday"] / asked["weekday"])
        assert ratio == pytest.approx(TRAINING_FACTORS[tool] / TRAINING_FACTORS["weekday"], rel=0.35)
    assert set(TRAINING_FACTORS) <= set(TOOL_WEIGHTS)


def test_later_requests_and_stories_too_are_drawn_for_training() -> None:
    """After the first turn the factors hold among an agent's own tools; training hears more stories than users tell."""
    tasks = [make_task(7, index).task for index in range(4000)]
    both = [task for task in tasks if {"calculator", "weekday"} <= set(task.tools)]
    later = Counter(call.name for task in both for turn in task.turns[1:] for call in turn.calls)
    assert later["weekday"] >= 10 and later["calculator"] / later["weekday"] > 2
    asked = [make_task(7, index, held_out=True).task for index in range(4000)]
    shares = []
    for made in (tasks, asked):
        first = [task.turns[0].user for task in made if task.turns[0].calls]
        shares.append(sum(bool(re.search(r"[.?!] \w", text)) for text in first) / len(first))
    assert shares[0] > shares[1] + 0.03


def test_requests_in_several_sentences_are_drawn_as_often_as_asked() -> None:
    """At three times the weight they are drawn up to three times as often: the other forms' share shrinks."""
    counts = []
    for stories in (1.0, 3.0):
        rng = random.Random(5)
        drawn = [phrase("before", (), rng, stories=stories) for _ in range(1500)]
        counts.append(sum(bool(re.search(r"[.?!] \w", text)) for text in drawn))
    assert 1.4 < counts[1] / counts[0] < 3.0


def test_the_roster_holds_each_tool_alone_and_in_company() -> None:
    assert {agent.tools for agent in roster() if len(agent.tools) == 1} == {(tool,) for tool in TOOL_WEIGHTS}
    assert len({agent.system for agent in roster()}) > 150
    assert all(len(set(agent.tools)) == len(agent.tools) for agent in roster())


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    synthesise(SynthConfig(attempts=70, plain_fraction=0.1), tmp_path, lambda done, total: seen.append((done, total)))
    assert seen == [(50, 84), (84, 84)]  # 70 tasks, 7 plain dialogues, 7 pairs for the critic


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attempts": 0}, "synth.attempts: saw 0"),
        ({"plain_fraction": -1.0}, "synth.plain_fraction: saw -1.0"),
        ({"error_rate": 2.0}, "synth.error_rate: saw 2.0"),
    ],
)
def test_impossible_configs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_a_run_that_dies_leaves_no_manifest(tmp_path: Path) -> None:
    synthesise(replace(CONFIG, attempts=50), tmp_path)

    def die(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesise(replace(CONFIG, attempts=50, seed=1), tmp_path, die)
    assert not (tmp_path / "manifest.json").exists()
