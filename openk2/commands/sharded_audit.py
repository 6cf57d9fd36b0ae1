"""Sharded against dense: the same steps in one process and in several, compared parameter by parameter.

The processes are started here, on this computer (gloo, fp32), with random
batches that no two processes see alike. What must agree after the steps, in
every process: all parameters, the maxima that QK-Clip saw, the tokens that each
expert was given, and the gradients' norms. Without the norms gradients averaged
instead of added up would hardly show: the steps of Muon and of AdamW have a size
of their own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import spawn

from openk2.config import ModelConfig, OptimConfig, ParallelConfig
from openk2.data.batch import Batch
from openk2.data.packing import pack_documents
from openk2.model.model import Model
from openk2.optim.muonclip import MuonClip
from openk2.parallel.sharding import lay_out, refuse_unavailable
from openk2.parallel.world import ALONE, World, leave_world
from openk2.plan.parameters import plan_parameters
from openk2.train.batch import supervised
from openk2.train.state import whole_state
from openk2.train.step import StepResult, train_step

TOLERANCE = 1e-5
ENGINES = ("fsdp", "ep", "deepspeed")
ROWS, LENGTH = 12, 64
MOST = 200_000_000  # parameters: each process holds them with gradients and momenta in fp32


@dataclass(frozen=True)
class Row:
    """One parameter: the relative distance of sharded from dense after all steps, and how far dense moved it."""

    name: str
    distance: float
    moved: float

    @property
    def passed(self) -> bool:
        return self.distance <= TOLERANCE and self.moved > 0


@dataclass(frozen=True)
class SteppedModel:
    """Where some steps end: parameters by name, and of every step the maxima [L, H], counts [L_moe, E] and norm."""

    parameters: dict[str, Tensor]
    max_scores: Tensor
    expert_counts: Tensor
    grad_norms: Tensor

    def save(self, path: Path) -> None:
        named = {f"p.{name}": tensor.contiguous() for name, tensor in self.parameters.items()}
        save_file({**named, "max": self.max_scores, "counts": self.expert_counts, "norms": self.grad_norms}, path)

    @classmethod
    def load(cls, path: Path) -> SteppedModel:
        found = load_file(path)
        parameters = {name[2:]: tensor for name, tensor in found.items() if name.startswith("p.")}
        return cls(parameters, found["max"], found["counts"], found["norms"])


def compare(
    model: ModelConfig, optim: OptimConfig, engine: str, *, processes: int = 2, steps: int = 10
) -> dict[str, Any]:
    """Both ways from the same weights on the same batches, judged."""
    if processes < 2 or ROWS % processes:
        raise ValueError(f"--processes: saw {processes}, expected 2 or more that divide {ROWS} rows")
    parallel = _parallel(engine, processes)
    refuse_unavailable(parallel)
    dense = run_steps(model, optim, ParallelConfig(), ALONE, steps)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (processes, Path(folder), model, optim, parallel, steps)
        spawn(_process, arguments, nprocs=processes)  # type: ignore[no-untyped-call]
        sharded = [SteppedModel.load(_result(Path(folder), rank)) for rank in range(processes)]
    run = {"num_hidden_layers": model.num_hidden_layers, "vocab_size": model.vocab_size}
    head = {"engine": engine, "processes": processes, "steps": steps, "model": run}
    return {**head, **judge(_fresh(model), dense, sharded)}


def judge(fresh: Model, dense: SteppedModel, sharded: Sequence[SteppedModel]) -> dict[str, Any]:
    """Rows by parameter, how far maxima, counts and norms are from dense, and whether all is as it must be.

    `sharded` is where each process ended; what counts is the one farthest away.
    """
    start = fresh.state_dict()
    maxima = _farthest([one.max_scores for one in sharded], dense.max_scores)
    norms = _farthest([one.grad_norms for one in sharded], dense.grad_norms)
    counts_differ = max(int((one.expert_counts - dense.expert_counts).abs().sum()) for one in sharded)
    rows = [
        Row(
            name,
            _farthest([one.parameters[name] for one in sharded], value),
            _relative(value - start[name], start[name]),
        )
        for name, value in dense.parameters.items()
    ]
    return {
        "rows": [asdict(row) | {"passed": row.passed} for row in rows],
        "max_scores": maxima,
        "grad_norms": norms,
        "counts_differ": counts_differ,
        "passed": all(row.passed for row in rows) and maxima <= TOLERANCE and norms <= TOLERANCE and counts_differ == 0,
    }


def describe(found: dict[str, Any]) -> str:
    """The same, to be read: one line a parameter."""
    width = max(len(row["name"]) for row in found["rows"])
    lines = [
        f"{'green' if row['passed'] else 'RED  '}  {row['name']:<{width}}  {row['distance']:.1e}"
        for row in found["rows"]
    ]
    verdict = "green" if found["passed"] else "RED"
    lines.append(
        f"{verdict}: {found['engine']}, {found['processes']} processes against one, {found['steps']} steps in fp32; "
        f"maxima of scores differ by {found['max_scores']:.1e}, gradients' norms by {found['grad_norms']:.1e}, "
        f"tokens of experts by {found['counts_differ']} "
        f"(at {found['model']['num_hidden_layers']} layers and a vocabulary of {found['model']['vocab_size']})"
    )
    return "\n".join(lines)


def run_steps(
    model: ModelConfig, optim: OptimConfig, parallel: ParallelConfig, world: World, steps: int
) -> SteppedModel:
    """`steps` training steps on random batches, this process taking its turn at their micro-batches.

    In fp32, Newton-Schulz too: it enlarges the rounding of bf16 a thousandfold, under which nothing could be told.
    """
    optim = replace(optim, ns_dtype="fp32")
    policy = _fresh(model)
    placement = lay_out(policy, parallel, world)
    optimizer = MuonClip.from_config(
        policy.parameter_specs(split_heads=optim.muon_split), policy.qk_groups(), optim, placement
    )
    policy.qk_clip_tau = optimizer.qk_clip_tau
    results: list[StepResult] = []
    for step in range(steps):
        micro_batches = supervised(_batch(model, step), 1)
        results.append(
            train_step(
                policy,
                optimizer,
                micro_batches[world.rank :: world.size],
                lr=optim.lr,
                balance_loss_alpha=1e-2,
                bias_update_rate=1e-2,
                world=world,
            )
        )
    return SteppedModel(
        whole_state(policy),
        torch.stack([result.max_scores for result in results]),
        torch.stack([result.expert_counts for result in results]),
        torch.tensor([result.report.grad_norm for result in results], dtype=torch.float64),
    )


def _parallel(engine: str, processes: int) -> ParallelConfig:
    """Expert parallelism is FSDP2 with the experts spread."""
    if engine == "ep":
        return ParallelConfig(dp=processes, ep=processes)
    return ParallelConfig(dp=processes, engine=engine)


def _fresh(model: ModelConfig) -> Model:
    return Model(model).init_weights(0)


def _batch(model: ModelConfig, step: int) -> Batch:
    """Documents of all lengths that fill the rows."""
    rng = np.random.default_rng([7, step])
    documents: list[np.ndarray] = []
    while sum(map(len, documents)) < ROWS * LENGTH:
        documents.append(rng.integers(model.vocab_size, size=rng.integers(3, LENGTH)))
    packed = pack_documents(documents, LENGTH)
    return next(packed.chunks(ROWS))


def _process(rank: int, size: int, folder: Path, *what: Any) -> None:
    torch.set_num_threads(1)
    patience = timedelta(minutes=2)  # a process that waits for another one in vain ends with an error
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=patience)
    world = World(rank, size, init_device_mesh("cpu", (size,), mesh_dim_names=("data",)))
    model, optim, parallel, steps = what
    found = run_steps(model, optim, parallel, world, steps)
    found.save(_result(folder, rank))
    leave_world()


def _result(folder: Path, rank: int) -> Path:
    return folder / f"result-{rank}.safetensors"


def _farthest(values: Sequence[Tensor], dense: Tensor) -> float:
    """The largest relative distance; nan where one is nan."""
    return float(torch.tensor([_relative(value - dense, dense) for value in values], dtype=torch.float64).max())


def _relative(difference: Tensor, value: Tensor) -> float:
    return float(difference.double().norm() / value.double().norm().clamp(min=1e-30))


def small_enough(model: ModelConfig) -> ModelConfig:
    """The preset's shape with a vocabulary and layers that fit seconds; ValueError where it is large even so."""
    small = replace(model, vocab_size=min(model.vocab_size, 512), num_hidden_layers=min(model.num_hidden_layers, 3))
    total = plan_parameters(small).total
    if total > MOST:
        raise ValueError(
            f"--engine: saw a model that has {total:,} parameters even with {small.num_hidden_layers} layers and a "
            f"vocabulary of {small.vocab_size}, expected at most {MOST:,}; audit tiny or small, or make it narrower "
            "with --model.* settings"
        )
    return small
