"""Tools that run, tasks for which there is one right outcome, and dialogues as they were sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from openk2.protocols.generation import Message, ToolSpec


class Environment(Protocol):
    """Tools with a state, opened for one dialogue and closed after it."""

    def declarations(self) -> list[ToolSpec]: ...

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run one tool. Raises `ToolError` for an undeclared tool or bad arguments."""
        ...

    def close(self) -> None: ...


class ToolError(Exception):
    """A tool refused its arguments; the text is what the model is shown."""


class EnvironmentFailure(Exception):
    """The environment itself broke, through no fault of the model's: such a dialogue is dropped, never scored."""


@dataclass(frozen=True)
class ExpectedCall:
    """A call that the task needs: the tool and its arguments after parsing."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Turn:
    """One user turn: what is said, the calls it needs (none for plain talk) and what the answer must state."""

    user: str
    calls: tuple[ExpectedCall, ...]
    answer: str


@dataclass(frozen=True)
class Task:
    """A dialogue to be carried out with tools, and how to tell whether it was.

    `tools` names the tools on offer, `setup` is the state they start from,
    `rubric` the success criteria a judge reads, `domain` the main tool.
    """

    id: str
    domain: str
    system: str
    tools: tuple[str, ...]
    turns: tuple[Turn, ...]
    setup: Mapping[str, Any] = field(default_factory=dict)
    rubric: tuple[str, ...] = ()


def task_to_dict(task: Task) -> dict[str, Any]:
    """The task as JSON holds it; `task_from_dict` reads it back."""
    turns = [
        {
            "user": turn.user,
            "calls": [{"name": call.name, "arguments": dict(call.arguments)} for call in turn.calls],
            "answer": turn.answer,
        }
        for turn in task.turns
    ]
    return {
        "id": task.id,
        "domain": task.domain,
        "system": task.system,
        "tools": list(task.tools),
        "turns": turns,
        "setup": dict(task.setup),
        "rubric": list(task.rubric),
    }


def task_from_dict(value: Mapping[str, Any]) -> Task:
    """Read a task. `system`, `setup` and `rubric` may be absent; an unknown or missing key is a ValueError."""
    _expect_keys("task", value, {"id": str, "domain": str, "tools": list, "turns": list}, _TASK_OPTIONAL)
    turns = []
    for index, turn in enumerate(value["turns"]):
        where = f"task {value['id']}: turns[{index}]"
        _expect_keys(where, turn, {"user": str, "calls": list, "answer": str}, {})
        for call in turn["calls"]:
            _expect_keys(f"{where}.calls", call, {"name": str, "arguments": dict}, {})
        calls = tuple(ExpectedCall(call["name"], call["arguments"]) for call in turn["calls"])
        turns.append(Turn(turn["user"], calls, turn["answer"]))
    if not turns:
        raise ValueError(f"task {value['id']}: saw no turns, expected at least one")
    return Task(
        id=value["id"],
        domain=value["domain"],
        system=value.get("system", ""),
        tools=tuple(value["tools"]),
        turns=tuple(turns),
        setup=value.get("setup", {}),
        rubric=tuple(value.get("rubric", ())),
    )


_TASK_OPTIONAL: dict[str, type] = {"system": str, "setup": dict, "rubric": list}


def _expect_keys(where: str, value: Any, required: Mapping[str, type], optional: Mapping[str, type]) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: saw {value!r:.40}, expected an object with {', '.join(required)}")
    for key in value:
        if key not in required and key not in optional:
            raise ValueError(f"{where}: saw the key {key!r}, expected only {', '.join((*required, *optional))}")
    for key, kind in (*required.items(), *optional.items()):
        if key in required and key not in value:
            raise ValueError(f"{where}: saw no {key!r}, expected {', '.join(required)}")
        if key in value and not isinstance(value[key], kind):
            raise ValueError(f"{where}.{key}: saw {value[key]!r:.40}, expected a JSON {_JSON_NAMES[kind]}")


_JSON_NAMES: dict[type, str] = {str: "string", list: "array", dict: "object"}


@dataclass(frozen=True)
class Outcome:
    """What grading found, each part by itself; `success` is all of them."""

    tool_correct: bool
    arguments_valid: bool
    answer_correct: bool
    finished: bool
    failure: str = ""  # "" or a short typed reason: "no_call", "wrong_tool", "bad_json", "schema", ...

    @property
    def success(self) -> bool:
        return self.tool_correct and self.arguments_valid and self.answer_correct and self.finished


@dataclass
class Rollout:
    """One dialogue as it was sampled, token for token.

    `sampled[t]` is true where the policy chose `ids[t]`; `logprobs[t]` is its
    log-probability then, and 0.0 elsewhere. Nothing here is ever re-tokenised.
    """

    task: Task
    ids: list[int]
    sampled: list[bool]
    logprobs: list[float]
    messages: list[Message]
    outcome: Outcome
    truncated: bool = False

    @property
    def num_sampled(self) -> int:
        return sum(self.sampled)
