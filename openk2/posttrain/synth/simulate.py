"""Playing a task: the user's turns, the teacher's replies, and tools that really run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openk2.environments import open_environment
from openk2.environments.episode import run_tools
from openk2.protocols import Message, Task, ToolSpec

MAX_ROUNDS = 3  # assistant messages that answer one user turn

Policy = Callable[[Sequence[Message]], Message]


@dataclass(frozen=True)
class Dialogue:
    """What was said, with the declarations on offer; `finished` if every user turn got a text."""

    messages: list[Message]
    tools: list[ToolSpec]
    finished: bool


def simulate(task: Task, policy: Policy) -> Dialogue:
    """Run the dialogue to its end. Tool refusals are shown to the policy, as in every other rollout."""
    environment = open_environment(task)
    try:
        messages: list[Message] = [{"role": "system", "content": task.system}] if task.system else []
        finished = True
        for turn in task.turns:
            messages.append({"role": "user", "content": turn.user})
            for _ in range(MAX_ROUNDS):
                reply = policy(messages)
                messages.append(reply)
                if not reply.get("tool_calls"):
                    break
                messages += run_tools(environment, reply)
            else:
                finished = False
                break
        return Dialogue(messages, environment.declarations(), finished)
    finally:
        environment.close()
