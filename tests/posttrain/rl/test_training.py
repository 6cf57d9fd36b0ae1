"""RL steps: what is sampled is what is trained on, failures are counted, and the better sample gains."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_kit import CODEC, FixedSampler, rollout, talk_dialogues, trainer
from small_checkpoint import small_model

from openk2.config import OptimConfig, RLConfig
from openk2.engine.engine import Engine
from openk2.environments import open_environment
from openk2.environments.episode import run_episodes
from openk2.observe.console import Console
from openk2.observe.metrics import read_metrics
from openk2.optim.muonclip import MuonClip
from openk2.posttrain.rl import loop
from openk2.posttrain.rl.objective import sequence_log_prob
from openk2.posttrain.rl.reward import verifiable_reward
from openk2.protocols import Completion, Environment, EnvironmentFailure, Rollout, SamplingParams, Task
from openk2.train.batch import MicroBatch
from openk2.train.step import train_step


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel is compiled: these models are too small to gain from it."""
    monkeypatch.setattr("openk2.train.session.fusion_available", lambda: (False, "a test"))


def test_the_reward_is_the_verified_outcome_less_the_penalty_for_being_cut() -> None:
    config = RLConfig(budget_penalty=0.5)
    assert verifiable_reward(rollout("yes", True), config) == 1.0
    assert verifiable_reward(rollout("no", False), config) == 0.0
    assert verifiable_reward(rollout("no", False, truncated=True), config) == -0.5


def test_rollouts_beyond_the_budget_are_cut_and_penalised() -> None:
    run = trainer(FixedSampler(lambda k: "yes" * 20 if k % 2 else "yes"), token_budget=16)
    given = run.source(0)
    assert given.extra["truncated_rate"] == 0.5 and given.extra["success"] == 0.5
    assert given.extra["reward_mean"] == pytest.approx(0.5 * 1.0 + 0.5 * -0.5)


def examples_of(micro_batches: list[MicroBatch]) -> dict[int, tuple[list[int], list[int]]]:
    """Example -> its input ids, and its targets that count."""
    found: dict[int, tuple[list[int], list[int]]] = {}
    for micro in micro_batches:
        for index in micro.example_ids[micro.example_ids >= 0].unique().tolist():
            here = micro.example_ids == index
            targets = micro.targets[here]
            assert index not in found, "an example stands in one micro-batch"
            found[index] = (micro.input_ids[here].tolist(), targets[targets >= 0].tolist())
    return found


def test_the_sampled_ids_are_trained_on_as_they_were_sampled() -> None:
    """The sampler writes a token a byte, which encoding its text again would not give."""
    sampler = FixedSampler(lambda k: "What is 37 times 48?" + "!" * (k % 5))
    assert len(CODEC.tokenizer.encode("What is 37 times 48?")) < len("What is 37 times 48?")
    run = trainer(sampler, micro_batch_tokens=512)
    groups = run._sample(0, run.pool.draw(0, 2))
    flat = [one for group in groups for one in group]
    found = examples_of(run._policy_batches(groups, [[0.0] * 4, [1.0] * 4]))
    assert sorted(found) == list(range(8))
    for index, one in enumerate(flat):
        ids, learned = found[index]
        assert ids == one.ids
        assert learned == [token for token, chosen in zip(one.ids, one.sampled, strict=True) if chosen]
        assert tuple(learned) == sampler.sampled[index]


def test_a_group_that_earned_the_same_needs_no_pass_and_counts_in_the_mean() -> None:
    run = trainer(FixedSampler(lambda k: "yes" + "!" * k), tau=0.5)
    groups = run._sample(0, run.pool.draw(0, 2))
    batches = run._policy_batches(groups, [[1.0] * 4, [0.0, 1.0, 1.0, 1.0]])
    found = examples_of(batches)
    assert [found[index][0] for index in sorted(found)] == [one.ids for one in groups[1]]
    errors = [(a + 0.5 * sum(one.logprobs)) ** 2 for a, one in zip((-0.75, 0.25, 0.25, 0.25), groups[1], strict=True)]
    found_loss = sum(float(micro.objective(torch.zeros(micro.targets.shape))) for micro in batches)
    assert found_loss == pytest.approx(sum(errors) / 8)


def test_the_step_syncs_first_and_its_temperature_falls() -> None:
    sampler = FixedSampler(lambda _: "yes")
    run = trainer(sampler, temperature_start=1.0, temperature_end=0.5, steps=3)
    for step in range(3):
        run.source(step)
        assert sampler.synced == step + 1
    assert sampler.temperatures == [1.0, 1.0, 0.75, 0.5]  # the first one is the probe of the pool


def test_ptx_adds_supervised_examples_that_depend_on_the_step_alone() -> None:
    run = trainer(FixedSampler(lambda _: "yes"), ptx_weight=0.1, ptx_examples=3)
    policy = len(run.source(0).micro_batches) - len(run._ptx_batches(0))
    assert policy == len(trainer(FixedSampler(lambda _: "yes")).source(0).micro_batches)
    once, again, other = (torch.cat([m.input_ids for m in run._ptx_batches(step)]) for step in (0, 0, 1))
    assert torch.equal(once, again) and not torch.equal(once, other)


def breaking(every: int) -> Any:
    """Episodes of which each `every`-th finds its tools broken."""
    opened = 0

    def open_task(task: Task) -> Environment:
        nonlocal opened
        opened += 1
        if opened % every == 0:
            raise EnvironmentFailure("no server")
        return open_environment(task)

    return functools.partial(run_episodes, open_task=open_task)


def test_broken_environments_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(FixedSampler(lambda _: "yes"))
    monkeypatch.setattr(loop, "run_episodes", breaking(every=4))
    given = run.source(1)
    assert given.extra["env_fail_rate"] == 0.25
    assert given.extra["success"] == 1.0 and given.extra["reward_mean"] == 1.0
    assert len(examples_of(given.micro_batches)) == 6
    assert {rate for rate in run.pool.rates} == {0.5, 0.75}, "a broken rollout says nothing of its task"


def test_a_step_without_one_working_environment_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(FixedSampler(lambda _: "yes"))
    monkeypatch.setattr(loop, "run_episodes", breaking(every=1))
    with pytest.raises(ValueError, match="every environment fail in step 2"):
        run.source(1)


def test_dialogues_without_a_task_are_refused() -> None:
    with pytest.raises(ValueError, match="no training dialogue with a task of at most 2 user turns"):
        trainer(FixedSampler(lambda _: ""), tasks=0)


class Recorded(FixedSampler):
    """Fixed answers, with the log-probabilities that the policy really gives them."""

    def __init__(self, policy: Any, text: Any) -> None:
        super().__init__(text)
        self.engine = Engine(policy)

    def __call__(self, prompts: Any, params: SamplingParams, *, on_token: Any = None) -> list[Completion]:
        found = super().__call__(prompts, params)
        scored = self.engine.score([(*prompt, *one.ids) for prompt, one in zip(prompts, found, strict=True)])
        return [
            Completion(one.ids, tuple(map(float, scores[-len(one.ids) :])), one.finish_reason)
            for one, scores in zip(found, scored, strict=True)
        ]


def total_log_probs(policy: Any, micro_batches: list[MicroBatch], count: int) -> torch.Tensor:
    total = torch.zeros(count)
    with torch.no_grad():
        for micro in micro_batches:
            log_probs, _ = policy.log_probs(micro.input_ids, micro.targets, micro.layout)
            total += sequence_log_prob(log_probs, micro.example_ids, count)
    return total


def test_steps_on_one_group_raise_the_better_sample_and_lower_the_other() -> None:
    run = trainer(FixedSampler(lambda _: ""), tau=0.1, prompts_per_step=1, group_size=2, token_budget=64)
    run.sampler = Recorded(run.policy, lambda k: "It is yes." if k == 0 else "Never 48, 37 or 1776.")
    given = run.source(1)  # after the probe's step
    before = total_log_probs(run.policy, given.micro_batches, 2)
    optimizer = MuonClip.from_config(run.policy.parameter_specs(), run.policy.qk_groups(), OptimConfig(lr=1e-3))
    for step in range(4):
        train_step(run.policy, optimizer, given.micro_batches, lr=5e-3, balance_loss_alpha=0.0, bias_update_rate=0.0)
        if step == 0:
            assert abs(sum(run.mismatch)) < 1e-4, "sampler and trainer are one model"
    after = total_log_probs(run.policy, given.micro_batches, 2)
    assert given.extra["success"] == 0.5
    assert after[0] > before[0] + 0.05
    assert after[1] < before[1] - 0.05


def test_a_bandit_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token to choose, half of the vocabulary pays: by chance 0.5, after a few steps nearly always."""

    def pays(one: Rollout, _: RLConfig) -> float:
        return float(one.ids[-1] < CODEC.tokenizer.vocab_size // 2)

    monkeypatch.setattr(loop, "verifiable_reward", pays)
    config = RLConfig(
        steps=10, prompts_per_step=2, group_size=32, token_budget=1, tau=0.01, temperature_end=1.0, warmup_steps=0,
        pool_tasks=4, ptx_weight=0.0, critic_weight=0.0, dtype="fp32", checkpoint_every=100, optim=OptimConfig(lr=2e-2),
    )  # fmt: skip
    console = Console(stream=io.StringIO())
    loop.rl(config, small_model(), CODEC, talk_dialogues(4), tmp_path / "rl", console, make_sampler=Engine)
    rewards = [record.extra["reward_mean"] or 0.0 for record in read_metrics(tmp_path / "rl" / "metrics.jsonl")]
    assert abs(rewards[0] - 0.5) < 0.2
    assert min(rewards[-3:]) > 0.7
