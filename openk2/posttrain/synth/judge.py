"""The judge: does a dialogue meet its task's rubric?

It knows the task, its rubric and the messages, and nothing of the teacher. The
calls and answers are graded by execution (`environments.grading`), then every
line of the rubric is checked by itself: the tool-use pattern, what each turn
must state, checkpoints on the tools' state, and the answers' manner. A dialogue
is kept only if all of it holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from openk2.environments import open_environment
from openk2.environments.answers import atoms, states
from openk2.environments.episode import run_tools
from openk2.environments.grading import grade
from openk2.posttrain.synth.rubric import parse_criterion
from openk2.posttrain.synth.simulate import Dialogue
from openk2.protocols import Message, Outcome, Task, ToolError


@dataclass(frozen=True)
class Verdict:
    """`scores` says of each rubric line whether it holds; `reason` is "" or the first thing that failed."""

    outcome: Outcome
    scores: Mapping[str, bool]
    reason: str

    @property
    def passed(self) -> bool:
        return not self.reason


def judge(task: Task, dialogue: Dialogue) -> Verdict:
    """Score a dialogue. Raises ValueError for a rubric line that cannot be checked."""
    outcome = grade(task, dialogue.messages, dialogue.finished, truncated=False, tools=dialogue.tools)
    turns = _by_turn(dialogue.messages)
    scores, failed = {}, []
    for line in task.rubric:
        kind, match = parse_criterion(line)
        scores[line] = _CHECKS[kind](task, turns, match)
        failed += [] if scores[line] else [f"rubric_{kind}"]
    reason = "" if outcome.success else outcome.failure or "ungraded"
    return Verdict(outcome, scores, reason or next(iter(failed), ""))


Turns = Sequence[Sequence[Message]]


def _by_turn(messages: Sequence[Message]) -> list[list[Message]]:
    """One list a user turn, the user's message first."""
    turns: list[list[Message]] = []
    for message in messages:
        if message["role"] == "user":
            turns.append([])
        if turns:
            turns[-1].append(message)
    return turns


def _of(turns: Turns, match: re.Match[str]) -> Sequence[Message]:
    number = int(match["turn"])
    return turns[number - 1] if number <= len(turns) else []


def _pattern(task: Task, turns: Turns, match: re.Match[str]) -> bool:
    """Exactly these tools were called, in any order."""
    wanted = [] if match["tools"] == "nothing" else match["tools"].split(", ")
    called = [call["function"]["name"] for message in _of(turns, match) for call in message.get("tool_calls") or ()]
    return sorted(called) == sorted(wanted)


def _states(task: Task, turns: Turns, match: re.Match[str]) -> bool:
    return states(match["answer"], _last_text(_of(turns, match)))


def _checkpoint(task: Task, turns: Turns, match: re.Match[str]) -> bool:
    """Replay the calls that were made up to the end of the turn, then look into the note."""
    if "get_note" not in task.tools:
        task = Task(task.id, task.domain, task.system, (*task.tools, "get_note"), task.turns, task.setup)
    environment = open_environment(task)
    try:
        for turn in turns[: int(match["turn"])]:
            for message in turn:
                run_tools(environment, message)
        return environment.call("get_note", {"key": match["key"]}) == match["text"]
    except ToolError:
        return False
    finally:
        environment.close()


def _grounded(task: Task, turns: Turns, match: re.Match[str]) -> bool:
    """No number in an answer that neither the user nor a tool has brought up."""
    known = atoms(task.system)
    for turn in turns:
        for message in turn:
            if message["role"] != "assistant":
                known |= atoms(message["content"])
            elif not message.get("tool_calls") and not atoms(message["content"]) <= known:
                return False
    return True


def _mentions(task: Task, turns: Turns, match: re.Match[str]) -> bool:
    """The value stands in the arguments of a call: a query may not be right by chance."""
    made = [call["function"]["arguments"] for message in _of(turns, match) for call in message.get("tool_calls") or ()]
    return any(re.search(rf"(?<!\w){re.escape(match['value'])}(?!\w)", arguments) for arguments in made)


def _brief(task: Task, turns: Turns, match: re.Match[str]) -> bool:
    return all(len(_last_text(turn).split()) <= int(match["words"]) for turn in turns)


def _last_text(turn: Sequence[Message]) -> str:
    return "" if not turn or turn[-1]["role"] != "assistant" else turn[-1]["content"]


_CHECKS: dict[str, Callable[[Task, Turns, re.Match[str]], bool]] = {
    "pattern": _pattern,
    "states": _states,
    "mentions": _mentions,
    "checkpoint": _checkpoint,
    "grounded": _grounded,
    "brief": _brief,
}
