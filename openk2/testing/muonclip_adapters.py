"""Optimizers behind the kit's adapter: ours, torch's Muon, and four that are wrong on purpose.

The wrong ones are rules that circulate; the kit must fail each and say why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from openk2.optim.muonclip import MuonClip
from openk2.protocols import ParameterSpec, QKGroup
from openk2.testing.muonclip import PARTS
from openk2.testing.muonclip_problems import Adapter, Micro, Problem, Steps

# (weights, problem, maxima [layers][H]) -> scales the weights in place
ClipRule = Callable[[Mapping[str, Tensor], Problem, Sequence[Tensor]], None]


def ours(problem: Problem, steps: Steps) -> dict[str, Tensor]:
    """`openk2.MuonClip`."""
    return run_muonclip(problem, steps, dict(problem.matrices), clip=None)


def run_muonclip(
    problem: Problem, steps: Steps, matrices: Mapping[str, tuple[int, int, int]], clip: ClipRule | None
) -> dict[str, Tensor]:
    """Our optimizer over the problem, with other matrices or another clip where those are given."""
    s = problem.settings
    weights = {name: nn.Parameter(value.clone()) for name, value in problem.parameters.items()}
    groups = [
        QKGroup.latent(
            f"layers.{index}",
            weights[layer.query],
            weights[layer.key_value],
            num_heads=layer.num_heads,
            nope_dim=layer.nope_dim,
            rope_dim=layer.rope_dim,
            value_dim=layer.value_dim,
        )
        for index, layer in enumerate(problem.attention)
    ]
    optimizer = MuonClip(
        [ParameterSpec(name, weight, "muon", "matrix", matrices[name]) for name, weight in weights.items()],
        groups if clip is None else (),
        lr=s.lr,
        weight_decay=s.weight_decay,
        momentum=s.momentum,
        nesterov=s.nesterov,
        ns_steps=s.ns_steps,
        update_rms=s.update_rms,
        qk_clip_tau=s.tau if clip is None else None,
    )
    for micros in steps:
        for name, weight in weights.items():
            weight.grad = torch.stack([micro.gradients[name] for micro in micros]).sum(0)
        maxima = _maxima(micros)
        optimizer.step(max_scores=torch.stack(maxima) if maxima and clip is None else None)
        if maxima and clip is not None:
            with torch.no_grad():
                clip(weights, problem, maxima)
    return {name: weight.detach() for name, weight in weights.items()}


def torch_muon(problem: Problem, steps: Steps) -> dict[str, Tensor]:
    """`torch.optim.Muon`, which knows single matrices and no clip."""
    s = problem.settings
    weights = {name: nn.Parameter(value.clone()) for name, value in problem.parameters.items()}
    optimizer = torch.optim.Muon(
        weights.values(),
        lr=s.lr,
        weight_decay=s.weight_decay,
        momentum=s.momentum,
        ns_steps=s.ns_steps,
        adjust_lr_fn="match_rms_adamw",
    )
    for micros in steps:
        for name, weight in weights.items():
            weight.grad = torch.stack([micro.gradients[name] for micro in micros]).sum(0)
        optimizer.step()
    return {name: weight.detach() for name, weight in weights.items()}


def _maxima(micros: Sequence[Micro]) -> list[Tensor]:
    """Per layer, the maxima [H] over micro-batches."""
    layers = zip(*(micro.max_scores for micro in micros), strict=True)
    return [torch.stack(list(layer)).amax(0) for layer in layers]


def _wrong(clip: ClipRule) -> Adapter:
    return lambda problem, steps: run_muonclip(problem, steps, dict(problem.matrices), clip)


def _one_factor_for_all(weights: Mapping[str, Tensor], problem: Problem, maxima: Sequence[Tensor]) -> None:
    """The largest score of the whole model decides for every head."""
    gamma = (_tau(problem) / torch.stack(list(maxima)).max()).clamp(max=1.0)
    for layer in problem.attention:
        weights[layer.query].mul_(gamma.sqrt())
        weights[layer.key_value].unflatten(0, (layer.num_heads, -1))[:, : layer.nope_dim].mul_(gamma.sqrt())


def _by_weight_norm(weights: Mapping[str, Tensor], problem: Problem, maxima: Sequence[Tensor]) -> None:
    """A bound from the norms of the weights stands for the scores."""
    for layer in problem.attention:
        query = weights[layer.query].unflatten(0, (layer.num_heads, -1))
        key = weights[layer.key_value].unflatten(0, (layer.num_heads, -1))[:, : layer.nope_dim]
        bound = torch.linalg.matrix_norm(query) * torch.linalg.matrix_norm(key)
        gamma = (_tau(problem) / bound).clamp(max=1.0)[:, None, None]
        query.mul_(gamma.sqrt())
        key.mul_(gamma.sqrt())


def _without_keys(weights: Mapping[str, Tensor], problem: Problem, maxima: Sequence[Tensor]) -> None:
    """sqrt(gamma) on the query, and the key's half of the correction forgotten."""
    for layer, scores in zip(problem.attention, maxima, strict=True):
        gamma = (_tau(problem) / scores).clamp(max=1.0)[:, None, None]
        weights[layer.query].unflatten(0, (layer.num_heads, -1)).mul_(gamma.sqrt())


def _tau(problem: Problem) -> float:
    assert problem.settings.tau is not None
    return problem.settings.tau


def across_experts(problem: Problem, steps: Steps) -> dict[str, Tensor]:
    """A stack of experts taken for one tall matrix."""
    flat = {name: (1, count * rows, columns) for name, (count, rows, columns) in problem.matrices.items()}
    return run_muonclip(problem, steps, flat, clip=None)


global_scalar = _wrong(_one_factor_for_all)
weight_norm = _wrong(_by_weight_norm)
keys_forgotten = _wrong(_without_keys)

ALL: tuple[tuple[str, Adapter, tuple[str, ...]], ...] = (
    ("openk2.MuonClip", ours, PARTS),
    ("torch.optim.Muon, the part it has", torch_muon, ("muon", "accumulation")),
    ("wrong on purpose: one factor for all heads", global_scalar, PARTS),
    ("wrong on purpose: clipped by the weights' norms", weight_norm, PARTS),
    ("wrong on purpose: the keys forgotten", keys_forgotten, PARTS),
    ("wrong on purpose: Newton-Schulz across the experts", across_experts, PARTS),
)
