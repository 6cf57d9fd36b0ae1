"""The held-out sets that ship with evaluation: fair, foreign to the generator, and solvable as they say."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from masking import skeletons

import openk2.evaluate
import openk2.posttrain.synth
from openk2.environments import TOOL_NAMES, open_environment
from openk2.environments.grading import grade
from openk2.posttrain.synth import names
from openk2.posttrain.synth.simulate import simulate
from openk2.posttrain.synth.split import held_out_name
from openk2.posttrain.synth.tasks import make_task
from openk2.posttrain.synth.teacher import Teacher
from openk2.protocols import Task, task_from_dict, task_to_dict

SETS = Path(openk2.evaluate.__file__).parent / "sets"
NUM_TRAINING_PROMPTS = 24_000  # a speedrun has about 37,000


def _read(name: str) -> list[Task]:
    return [task_from_dict(json.loads(line)) for line in (SETS / name).read_text(encoding="utf-8").splitlines()]


PHRASINGS, FREEHAND = _read("phrasings.jsonl"), _read("freehand.jsonl")


@pytest.fixture(scope="module")
def training() -> tuple[str, set[str]]:
    """All skeletons of the training prompts, one a line, and all their words."""
    lines: set[str] = set()
    pools = (names.PERSONS, names.CITIES, names.NOTE_KEYS, names.ITEMS, names.WORDS)
    words = {name.lower() for pool in pools for name in pool if not held_out_name(name)}  # a sample may miss some
    count = index = 0
    while count < NUM_TRAINING_PROMPTS:
        task = make_task(0, index).task
        found = skeletons(task)
        lines.update(found)
        for turn in task.turns:
            words.update(re.findall(r"[a-z']+", turn.user.lower()))
        count, index = count + len(found), index + 1
    return "".join(f" {line} \n" for line in sorted(lines)), words


def test_sizes() -> None:
    assert len(PHRASINGS) >= 200 and len(FREEHAND) >= 50
    for tasks in (PHRASINGS, FREEHAND):
        assert len({task.id for task in tasks}) == len(tasks)
        assert {call.name for task in tasks for turn in task.turns for call in turn.calls} == set(TOOL_NAMES)
        assert any(not turn.calls for task in tasks for turn in task.turns)
        assert all(task_from_dict(task_to_dict(task)) == task for task in tasks)


def test_no_held_out_phrasing_occurs_in_training(training: tuple[str, set[str]]) -> None:
    """Not as a whole prompt, and not as a part of one either."""
    own = [line for task in PHRASINGS for line in skeletons(task)]
    assert len(set(own)) == len(own)
    assert [line for line in own if f" {line} " in training[0]] == []


def test_the_check_would_find_a_training_phrasing(training: tuple[str, set[str]]) -> None:
    assert all(f" {line} " in training[0] for index in range(200) for line in skeletons(make_task(0, index).task))


def test_every_word_of_the_held_out_phrasings_occurs_in_training(training: tuple[str, set[str]]) -> None:
    for task in PHRASINGS:
        for turn in task.turns:
            assert set(re.findall(r"[a-z']+", turn.user.lower())) <= training[1], turn.user


def test_the_generator_does_not_know_the_sets() -> None:
    folder = Path(openk2.posttrain.synth.__file__).parent
    for source in folder.rglob("*.py"):
        text = source.read_text(encoding="utf-8")
        assert not re.search(r"openk2[./]evaluate|sets/|phrasings\.jsonl|freehand", text), source


@pytest.mark.parametrize("task", [*PHRASINGS, *FREEHAND], ids=lambda task: task.id)
def test_gold_dialogues_succeed(task: Task) -> None:
    """The expected calls run, and an answer worded from what they return is graded a success."""
    replies = [f"Here: {turn.answer}." if turn.answer else "You are welcome." for turn in task.turns]
    dialogue = simulate(task, Teacher(task, replies, random.Random(0)).reply)
    assert grade(task, dialogue.messages, dialogue.finished, False).success
    environment = open_environment(task)
    try:
        for turn in task.turns:
            results = [environment.call(call.name, call.arguments) for call in turn.calls]
            assert not turn.calls or any(_is_stated(turn.answer, result) for result in results)
    finally:
        environment.close()


def _is_stated(answer: str, result: str) -> bool:
    """Whether each part of the answer stands in the tool's result."""
    return all(part in result for part in answer.split(", "))


def test_a_task_line_with_an_unknown_key_is_refused() -> None:
    good = task_to_dict(FREEHAND[0])
    with pytest.raises(ValueError, match="saw the key 'sytem'"):
        task_from_dict({**good, "sytem": "x"})
    with pytest.raises(ValueError, match="saw no 'answer'"):
        task_from_dict({**good, "turns": [{"user": "hi", "calls": []}]})
    with pytest.raises(ValueError, match="expected a JSON array"):
        task_from_dict({**good, "tools": "calculator"})
    with pytest.raises(ValueError, match="expected at least one"):
        task_from_dict({**good, "turns": []})
