"""The driver against a scripted policy: tokens kept as sampled, rounds in lock step, ends of every kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tool_dialogues import GOLD_TASKS, ScriptedPolicy, calls_message, gold_script, play, task

from openk2.chat.codec import Codec
from openk2.environments import declarations, open_environment
from openk2.environments.episode import run_episodes
from openk2.protocols import Environment, EnvironmentFailure, Rollout, Task, ToolSpec

MULTIPLY = task("calculator", "What is 37 times 48?", {"expression": "37*48"}, "1776")


def sampled_part(rollout: Rollout) -> list[int]:
    return [token for token, chosen in zip(rollout.ids, rollout.sampled, strict=True) if chosen]


def test_gold_episodes_succeed_in_lock_step(codec: Codec) -> None:
    policy = ScriptedPolicy(codec, [gold_script(task) for task in GOLD_TASKS])
    rollouts = run_episodes(GOLD_TASKS, policy, codec, max_new_tokens=400, temperature=0.7, seed=3)
    assert [rollout.task for rollout in rollouts] == list(GOLD_TASKS)
    assert [rollout.outcome.failure for rollout in rollouts] == [""] * len(GOLD_TASKS)
    longest = max(len(gold_script(task)) for task in GOLD_TASKS)
    assert len(policy.prompts) == longest, "one generation a round, however many dialogues"
    assert len({params.seed for params in policy.params}) == longest, "each round draws its own numbers"
    assert all(params.temperature == 0.7 and params.stop_ids == codec.stop_ids for params in policy.params)


@pytest.mark.parametrize("gold", GOLD_TASKS, ids=lambda gold: gold.id)
def test_ids_are_the_dialogue_as_the_codec_would_write_it(codec: Codec, gold: Task) -> None:
    policy = ScriptedPolicy(codec, [gold_script(gold)])
    (rollout,) = run_episodes([gold], policy, codec, max_new_tokens=400)
    assert rollout.messages == play(gold, gold_script(gold))
    whole = codec.encode(rollout.messages, declarations(gold.tools) or None)
    assert rollout.ids == list(whole.ids)
    assert rollout.sampled == list(whole.mask)
    assert len(rollout.logprobs) == len(rollout.ids)
    assert rollout.logprobs == [-0.25 if chosen else 0.0 for chosen in rollout.sampled]
    assert not rollout.truncated
    for (earlier,), (later,) in zip(policy.prompts, policy.prompts[1:], strict=False):
        assert later[: len(earlier)] == earlier, "only ever appended to"


def test_sampled_ids_are_never_retokenised(codec: Codec) -> None:
    """A policy may spell a text with other tokens than the tokenizer would; these are the ids to train on."""
    letters = [codec.tokenizer.encode(letter)[0] for letter in "It is 1776."]
    assert len(letters) > len(codec.tokenizer.encode("It is 1776."))
    policy = ScriptedPolicy(codec, [gold_script(MULTIPLY)])
    policy.edit = lambda ids: ids if codec.decode_message(ids).get("tool_calls") else (*letters, codec.stop_ids[0])
    (rollout,) = run_episodes([MULTIPLY], policy, codec, max_new_tokens=400)
    assert rollout.outcome.success
    assert sampled_part(rollout)[-len(letters) - 1 :] == [*letters, codec.stop_ids[0]]


def test_call_ids_stay_as_the_model_wrote_them(codec: Codec) -> None:
    script = [calls_message([("calculator", {"expression": "37*48"})], 7), gold_script(MULTIPLY)[-1]]
    (rollout,) = run_episodes([MULTIPLY], ScriptedPolicy(codec, [script]), codec, max_new_tokens=400)
    assert rollout.outcome.success
    assert rollout.messages[3]["tool_call_id"] == "functions.calculator:7"
    assert "functions.calculator:7\n    1776" in codec.tokenizer.decode(rollout.ids)


def test_a_tools_refusal_is_shown_to_the_model(codec: Codec) -> None:
    script = [
        calls_message([("calculator", {"expression": "37^48"}), ("abacus", "nonsense")], 0),
        *gold_script(MULTIPLY),
    ]
    (rollout,) = run_episodes([MULTIPLY], ScriptedPolicy(codec, [script]), codec, max_new_tokens=400)
    results = [message["content"] for message in rollout.messages if message["role"] == "tool"]
    assert results[0].startswith("error: expression may hold only")
    assert results[1] == "error: arguments are not JSON"
    assert results[2] == "1776"
    assert rollout.outcome.failure == "tool_error"


def test_a_turn_without_its_end_token_does_not_spoil_the_next(codec: Codec) -> None:
    im_end = codec.stop_ids[0]
    gold = GOLD_TASKS[-1]
    policy = ScriptedPolicy(codec, [gold_script(gold)])
    policy.edit = lambda ids: ids[:-1]
    (rollout,) = run_episodes([gold], policy, codec, max_new_tokens=400)
    assert rollout.outcome.success
    whole = codec.encode(rollout.messages, declarations(gold.tools))
    assert rollout.ids == list(whole.ids)[:-1], "the missing end tokens are there, save after the last turn"
    assert im_end not in sampled_part(rollout), "and are not said to be sampled"


def test_a_turn_ended_by_another_stop_token(codec: Codec) -> None:
    im_end, eos = codec.stop_ids
    policy = ScriptedPolicy(codec, [gold_script(MULTIPLY)])
    policy.edit = lambda ids: (*ids[:-1], eos)
    (rollout,) = run_episodes([MULTIPLY], policy, codec, max_new_tokens=400)
    assert rollout.outcome.success
    at = rollout.ids.index(eos)
    assert rollout.ids[at + 1] == im_end and not rollout.sampled[at + 1]


def test_a_cut_turn_ends_the_dialogue(codec: Codec) -> None:
    policies = [ScriptedPolicy(codec, [gold_script(task) for task in GOLD_TASKS]) for _ in range(2)]
    rollouts = run_episodes(GOLD_TASKS, policies[0], codec, max_new_tokens=4)
    assert all(rollout.truncated and rollout.outcome.failure == "budget" for rollout in rollouts)
    assert all(rollout.num_sampled == 4 for rollout in rollouts)
    assert len(policies[0].prompts) == 1
    policies[1].finish_reason = "length"
    (rollout, *_) = run_episodes(GOLD_TASKS, policies[1], codec, max_new_tokens=400)
    assert rollout.truncated and rollout.messages[-1]["role"] == "assistant"


def test_the_token_budget_is_exact_for_each_dialogue(codec: Codec) -> None:
    tasks = GOLD_TASKS
    needed = []
    for gold in tasks:
        (rollout,) = run_episodes([gold], ScriptedPolicy(codec, [gold_script(gold)]), codec, max_new_tokens=400)
        needed.append(rollout.num_sampled)
    for gold, count in zip(tasks, needed, strict=True):
        for budget, ends_well in ((count, True), (count - 1, False)):
            policy = ScriptedPolicy(codec, [gold_script(gold)])
            (rollout,) = run_episodes([gold], policy, codec, max_new_tokens=400, token_budget=budget)
            assert rollout.outcome.success is ends_well
            assert rollout.truncated is not ends_well
            assert rollout.num_sampled <= budget
    budget = sorted(needed)[len(needed) // 2]
    policy = BatchPolicy(codec, tasks)
    rollouts = run_episodes(tasks, policy, codec, max_new_tokens=400, token_budget=budget)
    for rollout, count in zip(rollouts, needed, strict=True):
        assert rollout.num_sampled <= budget
        assert rollout.truncated is (count > budget)


class BatchPolicy(ScriptedPolicy):
    """Finds its dialogue by the prompt's text, since a budget ends dialogues before their scripts."""

    def __init__(self, codec: Codec, tasks: tuple[Task, ...]) -> None:
        super().__init__(codec, [gold_script(task) for task in tasks])
        self.tasks = tasks

    def __call__(self, prompts: Any, params: Any, *, on_token: Any = None, grammars: Any = None) -> Any:
        first_prompts = {gold.id: codec_prompt(self.codec, gold) for gold in self.tasks}
        chosen = [
            next(
                at
                for at, gold in enumerate(self.tasks)
                if tuple(prompt[: len(first_prompts[gold.id])]) == first_prompts[gold.id]
            )
            for prompt in prompts
        ]
        every = self.queues
        self.queues = [every[at] for at in chosen]
        try:
            return super().__call__(prompts, params)
        finally:
            self.queues = every


def codec_prompt(codec: Any, gold: Task) -> tuple[int, ...]:
    system = [{"role": "system", "content": gold.system}] if gold.system else []
    first = [*system, {"role": "user", "content": gold.turns[0].user}]
    return tuple(codec.encode(first, declarations(gold.tools) or None, add_generation_prompt=True).ids)


def test_a_budget_spent_on_a_call_ends_the_dialogue(codec: Codec) -> None:
    policy = ScriptedPolicy(codec, [gold_script(MULTIPLY)])
    call = len(policy.sampled_ids(gold_script(MULTIPLY)[0]))
    (rollout,) = run_episodes([MULTIPLY], policy, codec, max_new_tokens=400, token_budget=call)
    assert rollout.truncated and rollout.outcome.failure == "budget"
    assert len(policy.prompts) == 1, "nothing is asked for when no token is left"
    with pytest.raises(ValueError, match="token_budget: saw 0"):
        run_episodes([MULTIPLY], policy, codec, max_new_tokens=400, token_budget=0)


def test_calling_for_ever_is_unfinished(codec: Codec) -> None:
    script = [calls_message([("calculator", {"expression": "37*48"})], index) for index in range(9)]
    policy = ScriptedPolicy(codec, [script])
    (rollout,) = run_episodes([MULTIPLY], policy, codec, max_new_tokens=400, max_turns=3)
    assert len(policy.prompts) == 3
    assert rollout.outcome.failure == "unfinished" and not rollout.truncated


class Watched:
    """An environment that tells when it is closed, and breaks on demand."""

    def __init__(self, task: Task, broken: bool) -> None:
        self.inner = open_environment(task)
        self.broken = broken
        self.closed = 0

    def declarations(self) -> list[ToolSpec]:
        return self.inner.declarations()

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        if self.broken:
            raise EnvironmentFailure("the server died")
        return self.inner.call(name, arguments)

    def close(self) -> None:
        self.closed += 1


def test_a_broken_environment_is_data_and_all_are_closed(codec: Codec) -> None:
    opened: list[Watched] = []

    def open_watched(task: Task) -> Environment:
        if len(opened) == 2:
            opened.append(Watched(task, False))
            raise EnvironmentFailure("cannot start")
        opened.append(Watched(task, broken=len(opened) == 1))
        return opened[-1]

    tasks = [replace(MULTIPLY, id=str(number)) for number in range(3)]
    script = gold_script(MULTIPLY)
    policy = ScriptedPolicy(codec, [script, script[:1], []])
    rollouts = run_episodes(tasks, policy, codec, max_new_tokens=400, open_task=open_watched)
    assert [rollout.outcome.failure for rollout in rollouts] == ["", "environment", "environment"]
    assert not rollouts[1].outcome.success
    assert len(rollouts[1].ids) == len(rollouts[1].sampled) == len(rollouts[1].logprobs)
    assert [environment.closed for environment in opened] == [1, 1, 0]


def test_environments_are_closed_when_the_policy_crashes(codec: Codec) -> None:
    opened: list[Watched] = []

    def open_watched(task: Task) -> Environment:
        opened.append(Watched(task, False))
        return opened[-1]

    def crash(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run_episodes([MULTIPLY, MULTIPLY], crash, codec, max_new_tokens=4, open_task=open_watched)
    assert [environment.closed for environment in opened] == [1, 1]


def test_two_dialogues_of_one_task_share_nothing(codec: Codec) -> None:
    gold = GOLD_TASKS[-1]
    rollouts = run_episodes([gold, gold], ScriptedPolicy(codec, [gold_script(gold)] * 2), codec, max_new_tokens=400)
    assert rollouts[0].outcome.success and rollouts[1].outcome.success
    assert rollouts[0].ids == rollouts[1].ids and rollouts[0].ids is not rollouts[1].ids
