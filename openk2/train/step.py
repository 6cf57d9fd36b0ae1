"""The shared training step: accumulate, guard, update, QK-Clip, move the router's bias.

Pre-training, SFT and RL differ in what a micro-batch minimises and in nothing
else. Invariants: gradient accumulation equals the big batch (losses are divided
by the step's totals, the balance loss is weighted by tokens); maxima of scores
and expert counts are gathered over all micro-batches of the step, and only
from the forwards of this function; a skipped step moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openk2.model.model import Model
from openk2.optim.muonclip import MuonClip, StepReport
from openk2.parallel.world import ALONE, World
from openk2.train.batch import MicroBatch


@dataclass(frozen=True)
class StepResult:
    """One step. `loss` without the balance loss; `max_scores` and their `score_bounds` (`mla.Scores`) fp32 [L, H];
    `expert_counts` int [L_moe, E]."""

    loss: float
    balance_loss: float
    tokens: int
    max_scores: Tensor
    score_bounds: Tensor
    expert_counts: Tensor
    report: StepReport


def train_step(
    model: Model,
    optimizer: MuonClip,
    micro_batches: Sequence[MicroBatch],
    *,
    lr: float,
    balance_loss_alpha: float,
    bias_update_rate: float,
    world: World = ALONE,
) -> StepResult:
    """One optimizer step over `micro_batches`, whose objectives add up to the step's loss.

    In a world of several processes each is given its own micro-batches, as many as the others; the result is that of
    the whole step.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    tokens = [micro.num_tokens for micro in micro_batches]
    all_tokens = int(world.sum(torch.tensor(sum(tokens))))
    loss = balance = 0.0
    scores: Tensor | None = None  # the largest ones and their bounds, [2, L, H]
    counts: Tensor | None = None
    for micro, count in zip(micro_batches, tokens, strict=True):
        log_probs, stats = model.log_probs(micro.input_ids, micro.targets, micro.layout)
        part = micro.objective(log_probs)
        share = count / all_tokens
        (part + balance_loss_alpha * share * stats.balance_loss).backward()
        loss += part.item()
        balance += share * stats.balance_loss.item()
        found = torch.stack((stats.max_scores, stats.score_bounds))
        scores = found if scores is None else torch.maximum(scores, found)
        counts = stats.expert_counts if counts is None else counts + stats.expert_counts
    assert scores is not None and counts is not None
    (max_scores, bounds), counts = world.max(scores), world.sum(counts)
    loss, balance = world.sum(torch.tensor([loss, balance], dtype=torch.float64)).tolist()
    for group in optimizer.param_groups:
        group["lr"] = lr
    report = optimizer.step(max_scores=max_scores)
    if not report.skipped and bias_update_rate:
        for router, load in zip(model.routers(), counts, strict=True):
            router.update_bias(load, bias_update_rate)
    return StepResult(loss, balance, all_tokens, max_scores, bounds, counts, report)
