"""The judge finds every error that the teacher makes on purpose, and keeps what is right."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from openk2.posttrain.synth.judge import Verdict, judge
from openk2.posttrain.synth.rubric import parse_criterion
from openk2.posttrain.synth.simulate import simulate
from openk2.posttrain.synth.tasks import Made, make_plain, make_task
from openk2.posttrain.synth.teacher import ERRORS, Teacher
from openk2.protocols import Message


def play(made: Made, error_rate: float = 0.0) -> tuple[list[str], Verdict]:
    """Play a made task with a teacher of some error rate; gives the teacher's errors and the judge's verdict."""
    teacher = Teacher(made.task, made.replies, random.Random(made.task.id), error_rate)
    return teacher.errors, judge(made.task, simulate(made.task, teacher.reply))


def test_every_right_dialogue_is_kept() -> None:
    for index in range(1500):
        made = make_plain(2, index) if index % 6 == 0 else make_task(2, index)
        _, verdict = play(made)
        assert verdict.passed, (verdict, made.task)
        assert verdict.outcome.success and all(verdict.scores.values())


def test_every_deliberate_error_is_rejected() -> None:
    caught: Counter[str] = Counter()
    for index in range(2500):
        made = make_plain(3, index) if index % 8 == 0 else make_task(3, index)
        errors, verdict = play(made, 0.5)
        assert verdict.passed == (not any(errors)), (errors, verdict, made.task)
        caught.update(error for error in errors if error)
    assert set(caught) == set(ERRORS)
    assert min(caught.values()) > 50


def test_every_held_out_task_can_be_solved() -> None:
    for index in range(400):
        _, verdict = play(make_task(4, index, held_out=True))
        assert verdict.passed, verdict


def _silent(made: Made) -> Callable[[list[Message]], Message]:
    return lambda messages: {"role": "assistant", "content": ""}


def test_an_empty_answer_is_rejected() -> None:
    made = make_task(0, 0)
    verdict = judge(made.task, simulate(made.task, _silent(made)))  # type: ignore[arg-type]
    assert not verdict.passed and verdict.reason == "no_call"


def test_a_policy_that_only_calls_is_stopped() -> None:
    made = next(made for made in (make_task(0, i) for i in range(400)) if made.task.domain == "weekday")
    call = {"id": "functions.weekday:0", "type": "function"}
    call["function"] = {"name": "weekday", "arguments": '{"date": "2020-01-01"}'}  # type: ignore[assignment]
    dialogue = simulate(made.task, lambda messages: {"role": "assistant", "content": "", "tool_calls": [call]})
    assert not dialogue.finished
    assert not judge(made.task, dialogue).passed


def test_a_number_from_nowhere_is_not_grounded() -> None:
    made = next(made for made in (make_task(0, i) for i in range(400)) if made.task.domain == "get_note")
    task = made.task
    verdict = judge(task, simulate(task, _adding(made, " It is 987654.")))
    assert verdict.scores["numbers in answers come from the user or a tool"] is False
    assert not verdict.passed


def test_a_long_answer_is_not_brief() -> None:
    made = next(made for made in (make_task(0, i) for i in range(400)) if made.task.domain == "get_note")
    verdict = judge(made.task, simulate(made.task, _adding(made, " well" * 40)))
    assert verdict.reason == "rubric_brief"


def _adding(made: Made, text: str) -> Callable[..., Message]:
    teacher = Teacher(made.task, made.replies, random.Random(0))

    def reply(messages: list[Message]) -> Message:
        message = teacher.reply(messages)
        return message if message.get("tool_calls") else {**message, "content": message["content"] + text}

    return reply


def test_an_unknown_criterion_is_an_error() -> None:
    made = make_task(0, 1)
    with pytest.raises(ValueError, match="rubric: saw 'be lovely'"):
        parse_criterion("be lovely")
    with pytest.raises(ValueError, match="be lovely"):
        task = replace(made.task, rubric=("be lovely",))
        judge(task, simulate(task, _adding(made, "")))
