"""Dialogues between a policy and its tools, all in lock step.

Invariants: token in, token out. What the policy sampled is kept exactly as it
was sampled, only the environment's turns are encoded and appended, and nothing
is tokenised twice. One environment per dialogue, always closed. A failure of
the environment is data (`Outcome.failure == "environment"`), to be dropped by
the caller: it is neither a crash nor a zero.

Left out: a limit on the context's length (the token budget and the bounded
answers of the tools keep dialogues short).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from openk2.environments.environment import open_environment
from openk2.environments.grading import grade
from openk2.environments.tools import ERROR_PREFIX, parse_arguments, short_line
from openk2.protocols import (
    ChatCodec,
    Completion,
    Environment,
    EnvironmentFailure,
    Generate,
    Message,
    Outcome,
    Rollout,
    SamplingParams,
    Task,
    ToolError,
)

BROKEN = Outcome(False, False, False, False, failure="environment")


def run_episodes(
    tasks: Sequence[Task],
    generate: Generate,
    codec: ChatCodec,
    *,
    max_new_tokens: int,
    max_turns: int = 4,
    temperature: float = 0.0,
    seed: int = 0,
    token_budget: int | None = None,
    open_task: Callable[[Task], Environment] = open_environment,
) -> list[Rollout]:
    """One graded rollout per task, in order; the same task may stand in the list many times.

    `max_new_tokens` bounds one assistant turn, `max_turns` the assistant turns
    that answer one user turn, `token_budget` the sampled tokens of a dialogue.
    A turn cut by either token limit ends its dialogue as truncated. Each round
    of sampling has its own stream of random numbers, derived from `seed`.
    """
    if token_budget is not None and token_budget < 1:
        raise ValueError(f"token_budget: saw {token_budget}, expected at least 1 or None")
    with ExitStack() as stack:
        episodes = [_open(task, codec, open_task, stack, token_budget) for task in tasks]
        round_number = 0
        while active := [episode for episode in episodes if not episode.ended]:
            params = SamplingParams(
                max_new_tokens=max(min(max_new_tokens, episode.budget_left) for episode in active),
                temperature=temperature,
                seed=_round_seed(seed, round_number),
                stop_ids=codec.stop_ids,
            )
            completions = generate([tuple(episode.ids) for episode in active], params)
            assert len(completions) == len(active), "one completion per prompt"
            for episode, completion in zip(active, completions, strict=True):
                _advance(episode, _cut(completion, episode.budget_left), codec, max_turns)
            round_number += 1
        return [episode.rollout() for episode in episodes]


def run_tools(environment: Environment, message: Message) -> list[Message]:
    """The tool turns that answer an assistant message, one a call, in order.

    A tool's refusal becomes its turn's text, for the model to read. Raises
    `EnvironmentFailure` if the environment breaks.
    """
    turns = []
    for call in message.get("tool_calls") or ():
        function = call["function"]
        try:
            content = environment.call(function["name"], parse_arguments(function["arguments"]))
        except ToolError as error:
            content = ERROR_PREFIX + short_line(str(error))
        turns.append({"role": "tool", "tool_call_id": call["id"], "name": function["name"], "content": content})
    return turns


@dataclass
class _Episode:
    """A dialogue on its way to being a `Rollout`."""

    task: Task
    messages: list[Message]
    token_budget: int | None
    environment: Environment | None = None
    ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turn: int = 0  # of the user's turns
    rounds: int = 0  # assistant turns since then
    ended: bool = False
    finished: bool = False
    truncated: bool = False
    broken: bool = False

    @property
    def budget_left(self) -> int:
        return sys.maxsize if self.token_budget is None else self.token_budget - sum(self.sampled)

    def append(self, ids: Sequence[int], logprobs: Sequence[float] | None = None) -> None:
        """Sampled ids come with their log-probabilities, the environment's without."""
        self.ids += ids
        self.sampled += [logprobs is not None] * len(ids)
        self.logprobs += [0.0] * len(ids) if logprobs is None else logprobs

    def rollout(self) -> Rollout:
        if self.broken:
            outcome = BROKEN
        else:
            assert self.environment is not None
            tools = self.environment.declarations()
            outcome = grade(self.task, self.messages, self.finished, self.truncated, tools=tools)
        return Rollout(self.task, self.ids, self.sampled, self.logprobs, self.messages, outcome, self.truncated)


def _open(
    task: Task,
    codec: ChatCodec,
    open_task: Callable[[Task], Environment],
    stack: ExitStack,
    token_budget: int | None,
) -> _Episode:
    system: list[Message] = [{"role": "system", "content": task.system}] if task.system else []
    episode = _Episode(task, [*system, {"role": "user", "content": task.turns[0].user}], token_budget)
    try:
        episode.environment = open_task(task)
    except EnvironmentFailure:
        episode.broken = episode.ended = True
        return episode
    stack.callback(episode.environment.close)
    tools = episode.environment.declarations()
    episode.append(codec.encode(episode.messages, tools or None, add_generation_prompt=True).ids)
    return episode


def _advance(episode: _Episode, completion: Completion, codec: ChatCodec, max_turns: int) -> None:
    """Take in one sampled assistant turn and append what answers it, or end the dialogue."""
    assert len(completion.ids) == len(completion.logprobs), "a log-probability per sampled id"
    before = tuple(episode.ids)
    episode.append(completion.ids, completion.logprobs)
    message = codec.decode_message(completion.ids)
    episode.messages.append(message)
    episode.rounds += 1
    if completion.finish_reason == "length":
        episode.truncated = episode.ended = True
        return
    answer = _answer(episode, message, max_turns)
    if answer:
        episode.messages += answer
        _close_turn(episode, codec)
        episode.append(codec.encode_turns(answer, add_generation_prompt=True).ids)
        if episode.budget_left == 0:
            episode.truncated = episode.ended = True
    assert tuple(episode.ids[: len(before)]) == before, "a dialogue only ever grows at its end"


def _answer(episode: _Episode, message: Message, max_turns: int) -> list[Message]:
    """The tools' answers, or the next user turn; nothing when the dialogue has ended."""
    if message.get("tool_calls"):
        if episode.rounds >= max_turns:
            episode.ended = True
            return []
        assert episode.environment is not None
        try:
            return run_tools(episode.environment, message)
        except EnvironmentFailure:
            episode.broken = episode.ended = True
            return []
    episode.turn, episode.rounds = episode.turn + 1, 0
    if episode.turn == len(episode.task.turns):
        episode.finished = episode.ended = True
        return []
    return [{"role": "user", "content": episode.task.turns[episode.turn].user}]


def _close_turn(episode: _Episode, codec: ChatCodec) -> None:
    """Append the end-of-turn token if the policy stopped without it, so that the next turn starts cleanly."""
    end_of_turn = codec.encode_turns([{"role": "user", "content": ""}]).ids[-1]
    if episode.ids[-1] != end_of_turn:
        episode.append([end_of_turn])


def _cut(completion: Completion, limit: int) -> Completion:
    """At most `limit` tokens of it; if that drops any, it was not finished."""
    if len(completion.ids) <= limit:
        return completion
    experts = None if completion.experts is None else completion.experts[:limit]
    return replace(
        completion,
        ids=completion.ids[:limit],
        logprobs=completion.logprobs[:limit],
        finish_reason="length",
        experts=experts,
    )


def _round_seed(seed: int, round_number: int) -> int:
    """Independent streams per round: the engine derives each sequence's from this and its index."""
    return int(np.random.SeedSequence([seed, round_number]).generate_state(1)[0])
