"""The scripted teacher: a policy that needs no model and no key.

It reads a turn's plan (which calls are needed) as a strong model would find it
out, calls the tools, and words its answer from what they really returned. At
`error_rate` of the user turns it goes wrong on purpose, in one of `ERRORS`, so
that judging has real work; `errors` records where, for the tests alone: the
judge never sees it.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from openk2.chat.template import CallId
from openk2.protocols import ExpectedCall, Message, Task

ERRORS = ("wrong_tool", "wrong_arguments", "wrong_answer", "no_call", "extra_call", "bad_json")
_OPERATOR_WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


class Teacher:
    """One dialogue's assistant. `reply` gives the next assistant message for the messages so far."""

    def __init__(self, task: Task, replies: Sequence[str], rng: random.Random, error_rate: float = 0.0) -> None:
        """`replies[t]` is what to say in a turn `t` that needs no tool."""
        self._task = task
        self._replies = replies
        self._rng = rng
        self._num_calls = 0
        self.errors = [self._draw_error(turn, error_rate) for turn in range(len(task.turns))]

    def reply(self, messages: Sequence[Message]) -> Message:
        """Calls after a user message, the answer after the tools' results."""
        turn = sum(message["role"] == "user" for message in messages) - 1
        results = _results_since_user(messages)
        error = self.errors[turn]
        if not results:
            calls = self._calls(turn, error)
            if calls:
                return {"role": "assistant", "content": "", "tool_calls": [self._call(call, error) for call in calls]}
        text = self._answer(turn, results, error)
        return {"role": "assistant", "content": change_value(text, self._rng) if error == "wrong_answer" else text}

    def _draw_error(self, turn: int, rate: float) -> str:
        if self._rng.random() >= rate:
            return ""
        calls = self._task.turns[turn].calls
        if not calls:
            return "extra_call" if self._task.tools else "wrong_answer"
        kinds = [kind for kind in ERRORS if kind != "wrong_tool" or len(self._task.tools) > 1]
        return self._rng.choice(kinds)

    def _calls(self, turn: int, error: str) -> list[ExpectedCall]:
        calls = list(self._task.turns[turn].calls)
        if error == "no_call":
            return []
        if error == "wrong_tool":
            others = [name for name in self._task.tools if name not in {call.name for call in calls}]
            return [ExpectedCall(self._rng.choice(others), call.arguments) for call in calls] if others else []
        if error == "wrong_arguments":
            return [ExpectedCall(call.name, spoil(call.arguments, self._rng)) for call in calls]
        if error == "extra_call":
            return [*calls, calls[0] if calls else ExpectedCall(self._rng.choice(self._task.tools), {})]
        return calls

    def _call(self, call: ExpectedCall, error: str) -> dict[str, Any]:
        arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
        arguments = arguments[:-1] if error == "bad_json" else arguments
        index, self._num_calls = self._num_calls, self._num_calls + 1
        function = {"name": call.name, "arguments": arguments}
        return {"id": str(CallId(call.name, index)), "type": "function", "function": function}

    def _answer(self, turn: int, results: Sequence[str], error: str) -> str:
        calls = self._task.turns[turn].calls
        if not calls:
            return self._replies[turn]
        if error == "no_call":
            return f"I think it is {self._rng.randint(2, 999)}."
        if len(calls) > 1:
            return f"They are {' and '.join(results[: len(calls)])}."
        return word_answer(calls[0], results[0])


def word_answer(call: ExpectedCall, result: str) -> str:
    """One short, regular sentence from a tool's result."""
    return _WORDINGS[call.name](call.arguments, result)


def _calculated(arguments: Mapping[str, Any], result: str) -> str:
    words = " ".join(_OPERATOR_WORDS.get(part, part) for part in arguments["expression"].split())
    return f"{words} is {result}."


def _queried(arguments: Mapping[str, Any], result: str) -> str:
    value = json.loads(result)[0][0] if result.startswith("[[") else result
    return f"There are {value}." if "COUNT" in arguments["query"] else f"It is {value}."


def _logged(arguments: Mapping[str, Any], result: str) -> str:
    fields = dict(line.split(": ", 1) for line in result.splitlines() if ": " in line)
    if not {"Author", "Message"} <= fields.keys():
        return f"It says {result}."
    return f"The last commit is by {fields['Author']}: {fields['Message']}."


def _listed(arguments: Mapping[str, Any], result: str) -> str:
    return f"The branches are {', '.join(line.strip('* ') for line in result.splitlines())}."


_WORDINGS: dict[str, Callable[[Mapping[str, Any], str], str]] = {
    "calculator": _calculated,
    "date_shift": lambda arguments, result: f"It is {result}.",
    "days_between": lambda arguments, result: f"That is {result} days.",
    "weekday": lambda arguments, result: f"It is a {result}.",
    "convert_units": lambda arguments, result: f"That is {result} {arguments['to_unit']}.",
    "set_note": lambda arguments, result: "Saved.",
    "get_note": lambda arguments, result: f"The note says: {result}.",
    "sql_query": _queried,
    "git_show": lambda arguments, result: f"It is {result}.",
    "git_log": _logged,
    "git_branch": _listed,
}


def spoil(arguments: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    """The same arguments with one of them changed to something else."""
    key = rng.choice(sorted(arguments))
    value = arguments[key]
    changed = value + rng.randint(1, 9) if isinstance(value, int | float) else change_value(value, rng)
    return {**arguments, key: changed}


def change_value(text: str, rng: random.Random) -> str:
    """The text with its last number changed, or its last word where it has none."""
    # The whole part of a decimal: 8.1 and 8.10 would be no change.
    number = re.search(r"\d+(?=(?:\.\d+)?\D*$)", text)
    if number:
        other = str(int(number[0]) + rng.randint(1, 9)).zfill(len(number[0]))
        return text[: number.start()] + other + text[number.end() :]
    word = re.search(r"\w+(?=\W*$)", text)
    assert word is not None
    return text[: word.start()] + "nothing" + text[word.end() :]


def _results_since_user(messages: Sequence[Message]) -> list[str]:
    last_user = max(i for i, message in enumerate(messages) if message["role"] == "user")
    return [message["content"] for message in messages[last_user:] if message["role"] == "tool"]
