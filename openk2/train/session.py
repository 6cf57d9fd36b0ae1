"""Opening a training run: the folder, what was settled in it, the model and its optimizer."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from openk2.config.model import ModelConfig
from openk2.config.run import OptimConfig, TrainConfig
from openk2.model.model import Model
from openk2.observe.console import Console
from openk2.observe.memory import keep_freed_memory
from openk2.observe.run_folder import RunFolder
from openk2.ops.attention_backends import choose_backend
from openk2.ops.fused import fusion_available, set_fusion
from openk2.optim.audit import audit, totals
from openk2.optim.muonclip import MuonClip
from openk2.optim.placement import WHOLE
from openk2.parallel.world import ALONE, World
from openk2.plan.parameters import plan_parameters
from openk2.protocols import Placement
from openk2.train.precision import DTYPES, choose_dtype
from openk2.version import __version__


def open_run(
    path: Path,
    config: Mapping[str, Any],
    *,
    stage: str,
    seed: int,
    dtype: str,
    console: Console,
    world: World = ALONE,
) -> tuple[AbstractContextManager[Any], torch.dtype]:
    """Lock the folder, record what runs in it, settle the dtype; the caller closes the folder.

    Only the first process holds it; the others are told what was settled.
    """
    keep_freed_memory()
    held: list[RunFolder] = []

    def settle() -> tuple[bool, str]:
        folder = _folder(path, config, stage=stage, seed=seed, console=console, processes=world.size)
        held.append(folder)
        fusion = folder.resolve("fusion", lambda: _choose_fusion(console))
        set_fusion(fusion)  # before the dtype is chosen by timing
        return fusion, folder.resolve("dtype", lambda: choose_dtype(dtype, console.line))

    try:
        fusion, name = world.agree(settle)
    except BaseException:
        for folder in held:
            folder.close()
        raise
    set_fusion(fusion)
    return held[0] if held else nullcontext(), DTYPES[name]


def _folder(
    path: Path, config: Mapping[str, Any], *, stage: str, seed: int, console: Console, processes: int
) -> RunFolder:
    folder = RunFolder.open(
        path,
        config,
        stage=stage,
        command=sys.argv,
        seed=seed,
        threads=torch.get_num_threads(),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "openk2": __version__,
            "processes": str(processes),
        },
        free=("parallel",),
    )
    for warning in folder.warnings:
        console.warn(warning)
    return folder


def _choose_fusion(console: Console) -> bool:
    """Compiled kernels differ from eager ones in the last bit, so a run folder keeps to one of them."""
    available, why = fusion_available()
    console.line(f"elementwise kernels: {'compiled' if available else 'eager'} ({why})")
    return available


def make_optimizer(model: Model, config: OptimConfig, console: Console, placement: Placement = WHOLE) -> MuonClip:
    """The optimizer of `config` over the model's own declarations; says which parameters went where."""
    specs = model.parameter_specs(split_heads=config.muon_split)
    optimizer = MuonClip.from_config(specs, model.qk_groups(), config, placement)
    model.qk_clip_tau = optimizer.qk_clip_tau
    counted = totals(audit(optimizer.specs, config.update_rms))
    console.line(f"optimizer {config.name}: {counted['muon']:,} parameters by Muon, {counted['adamw']:,} by AdamW")
    return optimizer


def set_compute(model: Model, train: TrainConfig, console: Console) -> None:
    """How the model is to compute, which changes its results by rounding at most; says what was chosen."""
    device = model.embed_tokens.weight.device
    chosen = choose_backend(train.attention, device)
    if chosen == "flex" and device.type == "cpu":
        raise ValueError("train.attention: saw flex on the CPU, where it has no backward pass; expected tiled or sdpa")
    model.attention, model.recompute = chosen, train.recompute == "selective"
    console.line(f"attention: {chosen}; recompute: {train.recompute}")


def refuse_beyond_memory(config: ModelConfig, processes: int = 1) -> None:
    """ValueError where not even weights, gradients and momentum in fp32 fit into this machine's memory.

    Of `processes` sharing a run each makes the whole weights first, and keeps its part of the rest.
    """
    total = plan_parameters(config).total
    needed = 4 * total * processes + 8 * total
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ValueError(
            f"model: saw {total:,} parameters, whose weights, gradients and momentum take {needed / 1e9:,.0f} GB "
            f"before any activation, expected at most this machine's {memory / 1e9:,.0f} GB; choose a smaller preset "
            "or make it smaller with --model.* settings"
        )


def fresh_model(config: ModelConfig, seed: int, compute_dtype: torch.dtype) -> Model:
    """An initialised model that trains with fp32 weights and `compute_dtype` products."""
    return Model(config, compute_dtype=compute_dtype).init_weights(seed)
