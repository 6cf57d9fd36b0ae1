"""Verifiable grading of a dialogue: the calls, their arguments, the answers, the end.

A dialogue succeeds if every user turn got exactly the calls it needs (in any
order, arguments equal by value), every call's arguments fit the declared
schema, no message breaks the call grammar (`malformed`, set by the codec), and
the last assistant text of the turn states the turn's answer and no
other. Each failure has a type; the first turn that fails names it.

Left out: partial credit, and judging of style (the self-critique's task).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openk2.environments.answers import hedges, states
from openk2.environments.environment import declarations
from openk2.environments.equivalence import same_call
from openk2.environments.git_fixture import fixture_classes
from openk2.environments.tools import ERROR_PREFIX, check_arguments, parse_arguments
from openk2.protocols import Message, Outcome, Task, ToolError, ToolSpec, Turn

FAILURES = (
    "no_call",
    "extra_call",
    "wrong_tool",
    "bad_json",
    "schema",
    "wrong_arguments",
    "tool_error",
    "wrong_answer",
    "unfinished",
    "budget",
    "environment",
)
# Control markers written out as text: a call that was not one.
_MARKERS = ("<|", "|>")


def grade(
    task: Task,
    messages: Sequence[Message],
    finished: bool,
    truncated: bool,
    *,
    tools: Sequence[ToolSpec] | None = None,
) -> Outcome:
    """Grade a dialogue of `task` from its messages, the system turn and all tool turns included.

    `finished` says that every user turn was answered, `truncated` that a token
    limit cut the dialogue. `tools` are the declarations that were on offer
    (those of `task.tools` if None).
    """
    specs = {spec["function"]["name"]: spec for spec in (declarations(task.tools) if tools is None else tools)}
    heard = [task.system]
    findings = []
    for turn, replies in zip(task.turns, _by_user_turn(messages), strict=False):
        heard.append(turn.user)
        findings.append(_grade_turn(task, turn, replies, specs, heard))
    finished = finished and not truncated and len(findings) == len(task.turns)
    failure = next((finding.failure for finding in findings if finding.failure), "")
    if not finished:
        failure = "budget" if truncated else "unfinished"
    return Outcome(
        tool_correct=finished and all(finding.tool_correct for finding in findings),
        arguments_valid=bool(findings) and all(finding.arguments_valid for finding in findings),
        answer_correct=finished and all(finding.answer_correct for finding in findings),
        finished=finished,
        failure=failure,
    )


@dataclass(frozen=True)
class _Finding:
    """What one user turn got; `failure` is "" if all is well."""

    tool_correct: bool
    arguments_valid: bool
    answer_correct: bool
    failure: str


@dataclass(frozen=True)
class _Call:
    """A call as it was made: `arguments` is None if they could not be read, `refused` if the tool said no."""

    name: str
    arguments: Mapping[str, Any] | None
    failure: str
    refused: bool


def _by_user_turn(messages: Sequence[Message]) -> list[list[Message]]:
    """What followed each user message."""
    turns: list[list[Message]] = []
    for message in messages:
        if message["role"] == "user":
            turns.append([])
        elif turns:
            turns[-1].append(message)
    return turns


def _grade_turn(
    task: Task, turn: Turn, replies: Sequence[Message], specs: Mapping[str, ToolSpec], heard: Sequence[str]
) -> _Finding:
    calls = _calls(replies, specs)
    malformed = any(message.get("malformed") for message in replies)
    failure = "bad_json" if malformed else _judge_calls(task, turn, calls)
    answer_correct = _answers(task, turn, replies, heard)
    made_and_valid = not malformed and not any(call.failure for call in calls) and bool(calls or not turn.calls)
    return _Finding(
        tool_correct=not failure,
        arguments_valid=made_and_valid,
        answer_correct=answer_correct,
        failure=failure or ("" if answer_correct else _answer_failure(replies)),
    )


def _calls(replies: Sequence[Message], specs: Mapping[str, ToolSpec]) -> list[_Call]:
    refused = {
        message["tool_call_id"]
        for message in replies
        if message["role"] == "tool" and message["content"].startswith(ERROR_PREFIX)
    }
    return [
        _read_call(call, specs, call["id"] in refused)
        for message in replies
        if message["role"] == "assistant"
        for call in message.get("tool_calls") or ()
    ]


def _read_call(call: Mapping[str, Any], specs: Mapping[str, ToolSpec], refused: bool) -> _Call:
    name = call["function"]["name"]
    try:
        arguments = parse_arguments(call["function"]["arguments"])
    except ToolError:
        return _Call(name, None, "bad_json", refused)
    if name not in specs:
        return _Call(name, arguments, "wrong_tool", refused)
    try:
        check_arguments(specs[name], arguments)
    except ToolError:
        return _Call(name, arguments, "schema", refused)
    return _Call(name, arguments, "", refused)


def _judge_calls(task: Task, turn: Turn, calls: Sequence[_Call]) -> str:
    """The type of the first thing wrong with the turn's calls, or ""."""
    missing = list(turn.calls)
    unexpected = []
    for call in calls:
        match = next((need for need in missing if not call.failure and _matches(task, need, call)), None)
        if match is None:
            unexpected.append(call)
        else:
            missing.remove(match)
    if not unexpected:
        return "no_call" if missing else ""
    call = unexpected[0]
    if call.failure == "bad_json" or not turn.calls:
        return call.failure if call.failure == "bad_json" else "extra_call"
    if call.name not in {need.name for need in turn.calls}:
        return "wrong_tool"
    if call.failure:
        return call.failure
    if call.refused:
        return "tool_error"
    return "wrong_arguments" if missing else "extra_call"


def _matches(task: Task, need: Any, call: _Call) -> bool:
    assert call.arguments is not None
    return need.name == call.name and same_call(call.name, need.arguments, call.arguments, task.setup)


def _answers(task: Task, turn: Turn, replies: Sequence[Message], heard: Sequence[str]) -> bool:
    """Whether the turn ends in a text that states the answer, or in any text where none is asked for."""
    text = _last_text(replies)
    if not text or any(marker in text for marker in _MARKERS):
        return False
    if not turn.answer:
        return True
    needed = [str(value) for call in turn.calls for value in call.arguments.values()]
    results = [message["content"] for message in replies if message["role"] == "tool"]
    return states(turn.answer, text) and not hedges(turn.answer, text, [*heard, *needed, *results], _classes(task))


def _answer_failure(replies: Sequence[Message]) -> str:
    """A call written out as text is a malformed call; anything else is a wrong answer."""
    return "bad_json" if "<|tool_call" in _last_text(replies) else "wrong_answer"


def _last_text(replies: Sequence[Message]) -> str:
    if not replies or replies[-1]["role"] != "assistant" or replies[-1].get("tool_calls"):
        return ""
    return (replies[-1].get("content") or "").strip()


def _classes(task: Task) -> list[list[str]]:
    """Words of which an answer names one: a column of the task's table, a file's values in the repositories."""
    classes = fixture_classes() if any(name.startswith("git_") for name in task.tools) else []
    if "table" in task.setup:
        for column in zip(*task.setup["table"]["rows"], strict=True):
            classes.append([value for value in column if isinstance(value, str)])
    return classes
