"""Tasks of every tool, and a scripted policy that answers them as it is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from openk2.environments import TOOL_NAMES, open_environment
from openk2.protocols import (
    ChatCodec,
    Completion,
    Environment,
    ExpectedCall,
    Grammar,
    Message,
    SamplingParams,
    Task,
    Turn,
)

PEOPLE = {
    "table": {
        "name": "people",
        "columns": ["name", "age", "city"],
        "rows": [["Ada", 36, "Rome"], ["Bob", 51, "Oslo"], ["Cleo", 28, "Lima"], ["Dan", 44, "Rome"]],
    }
}


def task(name: str, user: str, arguments: dict[str, Any], answer: str, **setup: Any) -> Task:
    """One user turn that needs one call."""
    turn = Turn(user, (ExpectedCall(name, arguments),), answer)
    return Task(f"one-{name}", name, "You use tools.", (name,), (turn,), setup)


GOLD_TASKS: tuple[Task, ...] = (
    task("calculator", "What is 37 times 48?", {"expression": "37*48"}, "1776"),
    task(
        "date_shift",
        "Which date is 30 days after 2024-02-15?",
        {"direction": "after", "date": "2024-02-15", "days": 30},
        "2024-03-16",
    ),
    task("days_between", "Days from 2024-01-01 to 2024-12-25?", {"start": "2024-01-01", "end": "2024-12-25"}, "359"),
    task("weekday", "What day is 2024-07-04?", {"date": "2024-07-04"}, "Thursday"),
    task(
        "convert_units",
        "How many kilometers are 12 miles?",
        {"value": 12, "from_unit": "miles", "to_unit": "kilometers"},
        "19.31",
    ),
    task("set_note", "Remember: the gate code is 4417.", {"key": "gate code", "text": "4417"}, "saved"),
    task("get_note", "What is the wifi name?", {"key": "wifi"}, "Blue Heron 7", notes={"wifi": "Blue Heron 7"}),
    task("sql_query", "How old is Bob?", {"query": "SELECT age FROM people WHERE name = 'Bob'"}, "51", **PEOPLE),
    task("git_show", "Which port does shop use on main?", {"repo_path": "shop", "revision": "main:PORT"}, "8000"),
    task("git_branch", "Which branches has blog?", {"repo_path": "blog", "branch_type": "local"}, "main"),
    task("git_log", "What was the last commit in mail?", {"repo_path": "mail", "max_count": 1}, "Fix cache"),
    Task("plain", "plain", "", TOOL_NAMES, (Turn("Hello!", (), ""), Turn("Capital of France?", (), "Paris"))),
    Task("no-tools", "plain", "", (), (Turn("Say hi.", (), "hi"),)),
    Task(
        "notes-twice",
        "set_note",
        "You use tools.",
        ("set_note", "get_note", "calculator"),
        (
            Turn("Note that rent is 950.", (ExpectedCall("set_note", {"key": "rent", "text": "950"}),), ""),
            Turn("What is my rent?", (ExpectedCall("get_note", {"key": "rent"}),), "950"),
            Turn(
                "And 2*950, and 3*950?",
                (
                    ExpectedCall("calculator", {"expression": "2*950"}),
                    ExpectedCall("calculator", {"expression": "3*950"}),
                ),
                "2850",
            ),
        ),
    ),
)


def calls_message(calls: Sequence[tuple[str, Any]], first_index: int, content: str = "") -> Message:
    """An assistant message that calls tools; arguments that are a string are sent as they are."""
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [
            {
                "id": f"functions.{name}:{first_index + at}",
                "type": "function",
                "function": {
                    "name": name,
                    "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
                },
            }
            for at, (name, arguments) in enumerate(calls)
        ],
    }


def gold_script(task: Task) -> list[Message]:
    """The assistant messages of a perfect dialogue."""
    script: list[Message] = []
    index = 0
    for turn in task.turns:
        if turn.calls:
            script.append(calls_message([(call.name, call.arguments) for call in turn.calls], index))
            index += len(turn.calls)
        script.append({"role": "assistant", "content": f"It is {turn.answer}." if turn.answer else "Done, of course."})
    return script


def play(task: Task, script: Sequence[Message], environment: Environment | None = None) -> list[Message]:
    """The dialogue's messages when the policy says `script`, with the tools really run."""
    from openk2.environments.episode import run_tools

    opened = environment or open_environment(task)
    messages: list[Message] = [{"role": "system", "content": task.system}] if task.system else []
    users = [{"role": "user", "content": turn.user} for turn in task.turns]
    messages.append(users.pop(0))
    for message in script:
        messages.append(message)
        if message.get("tool_calls"):
            messages += run_tools(opened, message)
        elif users:
            messages.append(users.pop(0))
    opened.close()
    return messages


class ScriptedPolicy:
    """A `Generate` that writes scripts: the next message of the dialogue whose prompt it is shown."""

    def __init__(self, codec: ChatCodec, scripts: Sequence[Sequence[Message]]) -> None:
        self.codec = codec
        self.queues = [list(script) for script in scripts]
        self.prompts: list[list[tuple[int, ...]]] = []
        self.params: list[SamplingParams] = []
        self.finish_reason = "stop"
        self.edit: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda ids: ids

    def sampled_ids(self, message: Message) -> tuple[int, ...]:
        """The ids a policy would sample for this message: the masked ones of its turn."""
        encoded = self.codec.encode_turns([message])
        return tuple(token for token, chosen in zip(encoded.ids, encoded.mask, strict=True) if chosen)

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        on_token: Callable[[int, int], None] | None = None,
        grammars: Sequence[Grammar | None] | None = None,
    ) -> list[Completion]:
        self.prompts.append([tuple(prompt) for prompt in prompts])
        self.params.append(params)
        waiting = [queue for queue in self.queues if queue]
        assert len(waiting) == len(prompts), "prompts come in the order of the tasks, ended ones left out"
        completions = []
        for queue in waiting:
            ids = self.edit(self.sampled_ids(queue.pop(0)))
            reason = self.finish_reason
            if len(ids) > params.max_new_tokens:
                ids, reason = ids[: params.max_new_tokens], "length"
            completions.append(Completion(ids, tuple(-0.25 for _ in ids), reason))
        return completions
