"""Agents: a system prompt and the tools it comes with.

The roster is fixed (it has its own seed), so that training, reinforcement
learning and the held-out sets all meet the same distribution of system prompts
and toolsets. One to three tools an agent, because a small model reads every
declaration. An empty system prompt means the codec's default.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from openk2.posttrain.synth.kinds import TOOL_WEIGHTS
from openk2.posttrain.synth.phrasing import Grammar, sentence_case

NUM_AGENTS = 800
_ROSTER_SEED = 20_250_711
_NO_SYSTEM_SHARE = 0.15

_SYSTEM = Grammar(
    {
        "system": """
            you are [openk2|a helpful assistant|an assistant|a small model|a helper with tools]. <rule>
            you are [openk2|a helpful assistant|an assistant|a small model|a helper with tools].
            you are a [careful|friendly|quick|kind|calm|patient|smart|good|polite|busy] <role>. <rule>
            you are a [careful|friendly|quick|kind|calm|patient|smart|good|polite|busy] <role>.
            you are the <role> of a [school|shop|small firm|family|team|hotel|club|library].
            you help [people|students|a family|a team|guests|customers|the user]. <rule>
            [help the user|help|assist the user|answer the user]. <rule>
            <rule>
        """,
        "plain": """
            you are [openk2|a helpful assistant|an assistant|a small model].
            you are [openk2|a helpful assistant|an assistant|a small model]. [answer briefly|be brief|keep it short].
            you are a [careful|friendly|quick|kind|calm|patient|smart|good|polite|busy] <role>.
            [answer briefly|be brief|keep it short|give short answers|be exact].
        """,
        "role": """
            [helper|assistant|clerk|secretary|teacher|guide|planner|bookkeeper|tutor|librarian|agent|office assistant]
        """,
        "rule": """
            [use the tools|use your tools|use tools when you need them|call a tool when it helps|use a tool if needed].
            [answer briefly|be brief|keep it short|give short answers|answer in one sentence|be exact].
            [use the tools|use a tool if needed] and [answer briefly|be brief|be exact].
            [never guess|do not guess|if unsure, use a tool].
        """,
    }
)


@dataclass(frozen=True)
class Agent:
    """`system` is "" for the codec's default prompt; `tools` are on offer in this order."""

    system: str
    tools: tuple[str, ...]


@cache
def roster() -> tuple[Agent, ...]:
    """All agents, the same in every run; each tool is held by some, alone by at least one."""
    rng = random.Random(_ROSTER_SEED)
    alone = [(tool,) for tool in TOOL_WEIGHTS]
    toolsets = alone + [_toolset(rng) for _ in range(NUM_AGENTS - len(alone))]
    return tuple(Agent(system_prompt(rng), tools) for tools in toolsets)


@cache
def agents_with(tool: str) -> tuple[Agent, ...]:
    """The agents that hold this tool."""
    return tuple(agent for agent in roster() if tool in agent.tools)


def system_prompt(rng: random.Random) -> str:
    """One of the roster's kind of system prompts, or "" for the default."""
    return "" if rng.random() < _NO_SYSTEM_SHARE else sentence_case(_SYSTEM.expand("system", rng))


def plain_prompt(rng: random.Random) -> str:
    """A system prompt for a dialogue without tools, or "" for the default."""
    return "" if rng.random() < 0.4 else sentence_case(_SYSTEM.expand("plain", rng))


def _toolset(rng: random.Random) -> tuple[str, ...]:
    if rng.random() < 0.12:  # notes are written and read back
        chosen = ["set_note", "get_note"]
    else:
        chosen = [rng.choice(list(TOOL_WEIGHTS))]
    size = max(len(chosen), rng.choices((1, 2, 3), (0.40, 0.42, 0.18))[0])
    others = [tool for tool in TOOL_WEIGHTS if tool not in chosen]
    chosen += rng.sample(others, size - len(chosen))
    rng.shuffle(chosen)
    return tuple(chosen)
