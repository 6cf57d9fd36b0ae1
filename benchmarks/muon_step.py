"""A step of MuonClip over 384 matrices against torch.optim.Muon, and what the optimizer's state costs.

    python benchmarks/muon_step.py [--quick] [--json FILE]

Both sides hold the same matrices in fp32 and orthogonalise in bf16 with the same
coefficients, five steps, Nesterov and weight decay; torch's is its own loop over
parameters, which has no batched form. Ratios are of medians, rounds in turn.
Rows `share/...`: the optimizer's part of a step of 32,768 tokens, beside the
least time its products could take: Newton-Schulz as written, 5 x (4 n^2 m + 2
n^3) FLOPs a matrix of n x m with n <= m, at the machine's peak. The last part
fills a state for a model of over a billion parameters.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import torch
from _rows import Rows, in_own_process, in_turn, seconds
from torch import nn
from train_step import Ours

from openk2.config import MODEL_PRESETS, ModelConfig, OptimConfig
from openk2.model.model import Model
from openk2.observe.memory import keep_freed_memory, peak_rss_bytes
from openk2.optim.muonclip import MuonClip
from openk2.protocols import ParameterSpec
from openk2.train.precision import matmul_flops_per_s

SHAPES = ((384, 64, 128), (384, 128, 256), (384, 256, 512))


def our_step(shape: tuple[int, int, int]) -> Callable[[], object]:
    weight = nn.Parameter(torch.randn(shape))
    weight.grad = torch.randn(shape)
    return MuonClip([ParameterSpec("experts", weight, "muon", "experts", shape)], lr=1e-3).step


def torchs_step(shape: tuple[int, int, int]) -> Callable[[], object]:
    weights = [nn.Parameter(torch.randn(shape[1:])) for _ in range(shape[0])]
    for weight in weights:
        weight.grad = torch.randn(shape[1:])
    return torch.optim.Muon(weights, lr=1e-3, adjust_lr_fn="match_rms_adamw").step


def share_of_a_step(rows: Rows, name: str, config: ModelConfig, rounds: int) -> None:
    side = Ours(config)
    side.batches *= 2  # 32,768 tokens
    side.step()
    taken = [(seconds(side.forward_backward), seconds(side.update)) for _ in range(rounds)]
    forward_backward, optimizer = (statistics.median(part) for part in zip(*taken, strict=True))
    flops = 0
    for spec in side.optimizer.specs:
        if spec.matrices is not None:
            count, height, width = spec.matrices
            n, m = sorted((height, width))
            flops += count * 5 * (4 * n * n * m + 2 * n**3)
    shares = [update / (before + update) for before, update in taken]
    rows.add(
        f"share/{name}",
        unit="ms",
        ours=optimizer * 1e3,
        peer=(forward_backward + optimizer) * 1e3,
        peer_name="the whole step of 32,768 tokens",
        ratio=optimizer / (forward_backward + optimizer),
        n=rounds,
        spread=[min(shares), max(shares)],
        floor_ms=flops / matmul_flops_per_s(torch.bfloat16) * 1e3,
    )


def fill_a_billion() -> dict[str, Any]:
    """Figures of one step of a model of over a billion parameters, for a process whose peak is its own."""
    keep_freed_memory()
    config = dataclasses.replace(MODEL_PRESETS["small"], num_hidden_layers=12, n_routed_experts=256)
    model = Model(config)
    specs = model.parameter_specs()
    count = sum(p.numel() for p in model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    before = peak_rss_bytes()
    optimizer = MuonClip.from_config(specs, model.qk_groups(), OptimConfig())
    optimizer.step(max_scores=torch.full((config.num_hidden_layers, config.num_attention_heads), 200.0))  # all clipped
    state = sum(t.nbytes for s in optimizer.state.values() for t in s.values())
    peak = peak_rss_bytes()
    return {
        "ours": state / count,
        "ratio": 8.0 * count / state,
        "parameters": count,
        "workspace_gb": (peak - before - state) / 1e9,
        "peak_rss_gb": peak / 1e9,
    }


def main() -> None:
    rows = Rows(__doc__.splitlines()[0])
    for shape in SHAPES:
        name = "x".join(map(str, shape))
        if rows.missing(name):
            sides = {"ours": our_step(shape), "peer": torchs_step(shape)}
            taken = in_turn(sides, 5 if rows.quick else 15, warm=2)
            rows.times(name, taken, "torch.optim.Muon", unit="ms", amount=1e3)
    for name, preset, rounds in (("tiny", "tiny", 5), ("100m", "small", 3)):
        if (name == "tiny" or not rows.quick) and rows.missing(f"share/{name}"):
            share_of_a_step(rows, name, MODEL_PRESETS[preset], rounds)
    if not rows.quick and rows.missing("state/billion"):
        figures = in_own_process(fill_a_billion)
        peer_name = "AdamW's two moments in fp32"
        rows.add("state/billion", unit="bytes per parameter", peer=8.0, peer_name=peer_name, n=1, spread=[], **figures)


if __name__ == "__main__":
    main()
