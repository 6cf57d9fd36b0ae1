"""Reinforcement learning with K2's objective, on tools that run.

A step: take over the newest weights in the sampler, draw hard prompts, sample
a group of dialogues for each, execute the called tools and check the answers,
let the policy rank pairs of its own samples, then one update of the shared
step on the sampled ids themselves (nothing is re-tokenised), with a little
supervised loss beside it (PTX). Synchronous, as K2's. Left out: partial
rollouts, routing replay, several updates per batch.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openk2.chat.codec import Codec
from openk2.config.run import RLConfig
from openk2.config.serialize import to_dict
from openk2.data.dialogues import Dialogue, dialogues_digest, encode_dialogues
from openk2.data.packing import pack_examples
from openk2.environments.critique import load_rubrics
from openk2.environments.episode import run_episodes
from openk2.model.model import Model
from openk2.observe.console import Console
from openk2.posttrain.rl.critic import Trust, rank_rewards
from openk2.posttrain.rl.objective import advantages, regularised_squared_error, sequence_log_prob
from openk2.posttrain.rl.prompts import PromptPool
from openk2.posttrain.rl.reward import verifiable_reward
from openk2.protocols import Rollout, Sampler
from openk2.train.batch import MicroBatch, Objective, cross_entropy, to_tensors
from openk2.train.loop import Plan, StepInput, fit
from openk2.train.session import make_optimizer, open_run

STAGE = "rl"
ROW_TOKENS = 512  # a packed row, where no dialogue is longer


class Trainer:
    """What one RL run holds between steps: the policy, its sampler, the prompt pool, the critic's record."""

    def __init__(
        self,
        config: RLConfig,
        policy: Model,
        codec: Codec,
        dialogues: Sequence[Dialogue],
        sampler: Sampler,
    ) -> None:
        self.config, self.policy, self.codec, self.sampler = config, policy, codec, sampler
        chosen = pool_dialogues(dialogues, config)
        if not chosen:
            raise ValueError(
                f"rl: saw no training dialogue with a task of at most {config.max_user_turns} user turns, expected "
                "trajectories from openk2 synth"
            )
        self.pool = PromptPool([dialogue.task for dialogue in chosen if dialogue.task is not None], config.seed)
        self.ptx = encode_dialogues(chosen, codec)
        self.rubrics = list(load_rubrics().values())
        self.trust = Trust()
        self.mismatch: list[float] = []

    def cursor(self) -> dict[str, Any]:
        return {"rates": list(self.pool.rates), "trust": asdict(self.trust)}

    def restore(self, cursor: Mapping[str, Any]) -> None:
        self.pool.rates = list(cursor["rates"])
        self.trust = Trust(**cursor["trust"])

    def source(self, step: int) -> StepInput:
        """One step's rollouts as micro-batches, and what was seen of them."""
        self.sampler.sync(self.policy)
        if step == 0:
            self._probe()
        drawn = self.pool.draw(step, self.config.prompts_per_step)
        groups = self._sample(step, drawn)
        rewards, critic_wins = self._rewards(step, groups)
        micro_batches = self._policy_batches(groups, rewards) + self._ptx_batches(step)
        return StepInput(micro_batches, self._figures(groups, rewards, critic_wins))

    def _probe(self) -> None:
        """One sample of every task of the pool, so that the first draws already go to hard ones."""
        rollouts = self._run(list(range(len(self.pool.tasks))), self.config.temperature_start, seed=self.config.seed)
        for index, rollout in enumerate(rollouts):
            if _unbroken([rollout]):
                self.pool.record(index, float(rollout.outcome.success))

    def _temperature(self, step: int) -> float:
        share = step / max(self.config.steps - 1, 1)
        return self.config.temperature_start + share * (self.config.temperature_end - self.config.temperature_start)

    def _run(self, indices: Sequence[int], temperature: float, seed: int) -> list[Rollout]:
        return run_episodes(
            [self.pool.tasks[index] for index in indices],
            self.sampler,
            self.codec,
            max_new_tokens=self.config.token_budget,
            temperature=temperature,
            seed=seed,
            token_budget=self.config.token_budget,
        )

    def _sample(self, step: int, drawn: Sequence[int]) -> list[list[Rollout]]:
        """A group of rollouts per prompt; those whose environment failed are no one's fault and are left out."""
        size = self.config.group_size
        indices = [index for index in drawn for _ in range(size)]
        rollouts = self._run(indices, self._temperature(step), seed=self.config.seed + 1 + step)
        groups = [_unbroken(rollouts[start : start + size]) for start in range(0, len(rollouts), size)]
        if not any(groups):
            raise ValueError(f"rl: saw every environment fail in step {step + 1}, expected tools that run; check them")
        for index, group in zip(drawn, groups, strict=True):
            if group:
                self.pool.record(index, sum(rollout.outcome.success for rollout in group) / len(group))
        return groups

    def _rewards(self, step: int, groups: Sequence[Sequence[Rollout]]) -> tuple[list[list[float]], list[list[float]]]:
        verified = [[verifiable_reward(rollout, self.config) for rollout in group] for group in groups]
        if not self.config.critic_weight:
            return verified, [[0.0] * len(group) for group in groups]
        weight = self.config.critic_weight * self.trust.weight  # by what was known before this step's answers
        wins = rank_rewards(
            groups,
            pairs_per_group=self.config.critic_pairs,
            rubrics=self.rubrics,
            score=self.sampler.score,
            codec=self.codec,
            trust=self.trust,
            rng=random.Random(f"critic/{self.config.seed}/{step}"),
        )
        paired = zip(verified, wins, strict=True)
        return [[r + weight * w for r, w in zip(rs, ws, strict=True)] for rs, ws in paired], wins

    def _policy_batches(
        self, groups: Sequence[Sequence[Rollout]], rewards: Sequence[Sequence[float]]
    ) -> list[MicroBatch]:
        total = sum(map(len, groups))
        # Where all samples of a prompt earned the same, every advantage is 0 and so is the gradient: the log-ratio,
        # taken before the update, is 0 too. They count in the mean and need no pass.
        telling = [index for index, group in enumerate(rewards) if group and max(group) > min(group)]
        telling = telling or [index for index, group in enumerate(groups) if group]
        rollouts = [rollout for index in telling for rollout in groups[index]]
        flat = torch.tensor([reward for index in telling for reward in rewards[index]], dtype=torch.float32)
        owners = torch.tensor([owner for owner, index in enumerate(telling) for _ in groups[index]])
        advantage = advantages(flat, owners)
        old = torch.tensor([sum(rollout.logprobs) for rollout in rollouts], dtype=torch.float32)
        length = self.policy.config.max_position_embeddings
        longest = max(len(rollout.ids) for rollout in rollouts)
        packed = pack_examples(
            [(rollout.ids, rollout.sampled) for rollout in rollouts],
            min(max(ROW_TOKENS, longest), length),
            self.codec.tokenizer.pad_id,
        )
        rows = max(1, self.config.micro_batch_tokens // packed.batch.input_ids.shape[1])
        self.mismatch.clear()
        sampled = sum(rollout.num_sampled for rollout in rollouts)
        return [self._with_objective(part, advantage, old, total, sampled) for part in packed.batch.chunks(rows)]

    def _with_objective(self, part: Any, advantage: Tensor, old: Tensor, total: int, sampled: int) -> MicroBatch:
        micro = to_tensors(part, lambda weights: cross_entropy(weights, 1.0))
        present = micro.example_ids[micro.example_ids >= 0].unique()

        def objective(log_probs: Tensor) -> Tensor:
            new = sequence_log_prob(log_probs, micro.example_ids, len(old))[present]
            self.mismatch.append(float((old[present] - new.detach()).sum()) / sampled)
            return regularised_squared_error(new, old[present], advantage[present], self.config.tau).sum() / total

        return MicroBatch(micro.input_ids, micro.targets, micro.weights, micro.example_ids, micro.layout, objective)

    def _ptx_batches(self, step: int) -> list[MicroBatch]:
        if not self.config.ptx_weight:
            return []
        rng = random.Random(f"ptx/{self.config.seed}/{step}")
        chosen = rng.sample(self.ptx, min(self.config.ptx_examples, len(self.ptx)))
        longest = max(len(ids) for ids, _ in chosen)
        length = min(max(ROW_TOKENS, longest), self.policy.config.max_position_embeddings)
        batch = pack_examples(chosen, length, self.codec.tokenizer.pad_id).batch

        def weighted(weights: Tensor) -> Objective:
            # Summed over a dialogue's tokens and averaged over dialogues: the unit of the policy's objective.
            loss = cross_entropy(weights, len(chosen))
            return lambda log_probs: self.config.ptx_weight * loss(log_probs)

        rows = max(1, self.config.micro_batch_tokens // batch.input_ids.shape[1])
        return [to_tensors(part, weighted) for part in batch.chunks(rows)]

    def _figures(
        self, groups: Sequence[Sequence[Rollout]], rewards: Sequence[Sequence[float]], wins: Sequence[Sequence[float]]
    ) -> dict[str, float]:
        rollouts = [rollout for group in groups for rollout in group]
        flat = [reward for group in rewards for reward in group]
        sampled = sum(rollout.num_sampled for rollout in rollouts)
        count = len(rollouts)
        malformed = {"bad_json", "schema"}
        asked = self.config.prompts_per_step * self.config.group_size
        spread = torch.tensor(flat)
        return {
            "reward_mean": float(spread.mean()),
            "reward_std": float(spread.std(correction=0)),
            "success": sum(rollout.outcome.success for rollout in rollouts) / count,
            "mean_length": sampled / count,
            # The mean surprise of the sampled tokens estimates the entropy at temperature 1.
            "entropy": -sum(sum(rollout.logprobs) for rollout in rollouts) / sampled,
            "degenerate_groups": sum(max(group) == min(group) for group in rewards if group) / len(groups),
            "parse_fail_rate": sum(rollout.outcome.failure in malformed for rollout in rollouts) / count,
            "env_fail_rate": (asked - count) / asked,
            "truncated_rate": sum(rollout.truncated for rollout in rollouts) / count,
            "critic_agreement": self.trust.agreement,
            "critic_weight": self.config.critic_weight * self.trust.weight,
        }


def _unbroken(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Those whose environment worked: only they say something about the policy."""
    return [rollout for rollout in rollouts if rollout.outcome.failure != "environment"]


def pool_dialogues(dialogues: Sequence[Dialogue], config: RLConfig) -> list[Dialogue]:
    """The training dialogues whose tasks make up the pool: the first ones that are short enough."""
    fitting = (d for d in dialogues if not d.held_out and d.task and len(d.task.turns) <= config.max_user_turns)
    return list(itertools.islice(fitting, config.pool_tasks))


def rl(
    config: RLConfig,
    policy: Model,
    codec: Codec,
    dialogues: Sequence[Dialogue],
    path: Path,
    console: Console,
    *,
    make_sampler: Callable[[Model], Sampler],
) -> Trust:
    """Train `policy` in place in the run folder `path`, or resume; returns the critic's record.

    `make_sampler` builds what samples and scores, once the run's dtype is settled.
    """
    identity = {**to_dict(config), "tokenizer": codec.tokenizer.digest(), "dialogues": dialogues_digest(dialogues)}
    folder, dtype = open_run(path, identity, stage=STAGE, seed=config.seed, dtype=config.dtype, console=console)
    with folder:
        policy.compute_dtype = dtype
        optimizer = make_optimizer(policy, config.optim, console)
        trainer = Trainer(config, policy, codec, dialogues, make_sampler(policy))
        plan = Plan(
            stage=STAGE,
            steps=config.steps,
            peak_lr=config.optim.lr,
            warmup_steps=min(config.warmup_steps, config.steps),
            decay_steps=0,
            final_lr_ratio=1.0,
            balance_loss_alpha=0.0,
            bias_update_rate=0.0,
            checkpoint_every=config.checkpoint_every,
            source=trainer.source,
            cursor=trainer.cursor,
            restore=trainer.restore,
            after=lambda: {"kl_mismatch": sum(trainer.mismatch)},
        )
        fit(plan, policy, optimizer, path, console)
    return trainer.trust
