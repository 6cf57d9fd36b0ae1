"""What runs in the processes that the tests start: a module of its own, for they import it by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from small_training import batch, same_tensors
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from openk2.commands import sharded_audit
from openk2.config.model import ModelConfig
from openk2.config.run import OptimConfig, ParallelConfig
from openk2.model.model import Model
from openk2.optim.muonclip import MuonClip
from openk2.parallel.deepspeed import SETTINGS, refuse_without_deepspeed
from openk2.parallel.placement import Flattened, Runs, Sharded, shard_rows
from openk2.parallel.sharding import lay_out
from openk2.parallel.world import ALONE, World, leave_world
from openk2.protocols import Result
from openk2.train.batch import supervised
from openk2.train.state import pack, unpack, whole_state
from openk2.train.step import StepResult, train_step


def _in_world(rank: int, size: int, store: str, work: Any, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    work(World(rank, size, init_device_mesh("cpu", (size,), mesh_dim_names=("data",))), *arguments)
    leave_world()


def in_world(size: int, folder: Path, work: Any, *arguments: Any) -> None:
    torch.multiprocessing.spawn(_in_world, (size, str(folder / "store"), work, arguments), nprocs=size)


def exchange(
    world: World, shapes: list[tuple[int, ...]], matrix: tuple[int, int], whole: list[tuple[int, ...]]
) -> None:
    """Every matrix goes through `function` once, and its parts come back; those of `whole` need not have gone."""
    generator = torch.Generator().manual_seed(0)
    placement = Sharded(world)
    parameters, parts, wanted, seen = [], [], [], []
    for shape in shapes:
        full = torch.randn(shape, generator=generator)
        held = shard_rows(shape[0], world.size)
        first = sum(held[: world.rank])
        local = full[first : first + held[world.rank]].clone()
        parameters.append(
            DTensor.from_local(local, world.mesh, [Shard(0)], run_check=False, shape=full.shape, stride=full.stride())
        )
        assert placement.first_element(parameters[-1]) == first * full[0].numel()
        parts.append(local)
        exact = full.view(-1, *matrix).bfloat16().flip(-1).view(shape)  # what `function` does, each matrix by itself
        wanted.append(exact[first : first + held[world.rank]])

    def function(stack: torch.Tensor) -> torch.Tensor:
        seen.append(len(stack))
        return stack.bfloat16().flip(-1)

    found = placement.through_whole(function, parts, parameters, matrix, torch.bfloat16)
    for got, expected in zip(found, wanted, strict=True):
        assert torch.equal(got, expected)
    held_whole = [parameter for parameter in parameters if not placement.is_cut(parameter, matrix)]
    assert [tuple(parameter.shape) for parameter in held_whole] == whole
    done = int(world.sum(torch.tensor(sum(seen))))
    assert done == sum(torch.Size(shape).numel() for shape in shapes) // (matrix[0] * matrix[1])  # each once


def exchange_runs(world: World, shapes: list[tuple[int, ...]], matrix: tuple[int, int]) -> None:
    """The same with runs of a flat buffer; what is put into it and gathered from it is what it was."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.zeros(shape) for shape in shapes]
    full = [torch.randn(shape, generator=generator) for shape in shapes]
    total = sum(parameter.numel() for parameter in parameters)
    placement = Flattened(world, parameters, torch.zeros(total // world.size + 1))  # no multiple of a row
    cut = [parameter for parameter in parameters if placement.is_cut(parameter, matrix)]
    assert 0 < len(cut) < len(parameters)
    for parameter, tensor in zip(parameters, full, strict=True):
        placement.put(tensor, parameter)
        assert torch.equal(parameter, tensor)
        assert torch.equal(placement.gather(placement.local(parameter), parameter), tensor)
    flat = torch.cat([tensor.flatten() for tensor in full])
    mine = flat[world.rank * len(placement.piece) :][: len(placement.piece)]
    assert torch.equal(placement.piece[: len(mine)], mine)
    parts = [placement.local(parameter) for parameter in parameters]
    found = placement.through_whole(lambda stack: stack.flip(-1), parts, parameters, matrix, torch.float32)
    for part, parameter, tensor in zip(found, parameters, full, strict=True):
        wanted = tensor.view(-1, *matrix).flip(-1).view(tensor.shape)
        assert torch.equal(placement.gather(part, parameter), wanted)


def agree(world: World, folder: Path) -> None:
    assert world.agree(lambda: {"rank": world.rank}) == {"rank": 0}
    assert world.any(world.rank == 1) and not world.any(False)
    assert world.sum(torch.tensor([1.0])).item() == world.size
    assert world.max(torch.tensor(world.rank)).item() == world.size - 1

    def work() -> int:
        """The others find what the first has made."""
        if world.first:
            (folder / "made").write_text("x")
        assert (folder / "made").exists()
        return world.rank

    assert world.one_by_one(work) == world.rank

    def refuse() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError if world.first else SystemExit):
        world.agree(refuse)


def resume(world: World, config: ModelConfig, before: ParallelConfig, after: ParallelConfig) -> None:
    """What is packed after a step, put into another model, takes the next step to the same bits, or nearly so."""
    first, second = _Trained(config, before, world, seed=0), _Trained(config, after, world, seed=1)
    first.step(0)
    state = copy.deepcopy(pack(first.model, first.optimizer, {"place": 1}))  # as from a disk, sharing nothing
    assert unpack(state, second.model, second.optimizer) == {"place": 1}
    assert same_tensors(pack(second.model, second.optimizer, {"place": 1}), state)
    assert any(router.e_score_correction_bias.any() for router in second.model.routers())
    first.step(1)
    second.step(1)
    reached, other = pack(first.model, first.optimizer, {}), pack(second.model, second.optimizer, {})
    assert not same_tensors(reached["model"], state["model"])
    if before == after:
        assert same_tensors(reached, other)
    for name, tensor in reached["model"].items():
        assert (tensor - other["model"][name]).norm() <= 1e-5 * tensor.norm(), name
    alone = Model(config)
    alone.load_state_dict(reached["model"])  # a checkpoint of several processes is one of a single process too


def spoil(world: World, config: ModelConfig, parallel: ParallelConfig) -> None:
    """Where one process has a loss that is no number, all of them skip the step, and go on as if it had not been."""
    spoilt, whole = _Trained(config, parallel, world), _Trained(config, parallel, world)
    for trained in (spoilt, whole):
        assert not trained.step(0).report.skipped
    before = copy.deepcopy(pack(spoilt.model, spoilt.optimizer, {}))
    assert spoilt.step(1, spoilt=world.rank == world.size - 1).report.skipped
    assert same_tensors(pack(spoilt.model, spoilt.optimizer, {}), before)
    for trained in (spoilt, whole):
        assert not trained.step(2).report.skipped
    after = pack(spoilt.model, spoilt.optimizer, {})
    assert same_tensors(after, pack(whole.model, whole.optimizer, {})) and not same_tensors(after, before)


def recompute(world: World, config: ModelConfig, parallel: ParallelConfig) -> None:
    """Making results again changes no bit where parameters come and go between the passes."""
    found = []
    for again in (False, True):
        trained = _Trained(config, parallel, world)
        trained.model.recompute = again
        trained.step(0)
        result = trained.step(1)
        found.append((whole_state(trained.model), result.max_scores, result.expert_counts))
    assert same_tensors(*(state for state, _, _ in found))
    assert torch.equal(found[0][1], found[1][1]) and torch.equal(found[0][2], found[1][2])


class _Trained:
    """A model and its optimizer, laid out as `parallel` says; with one process each process trains its own."""

    def __init__(self, config: ModelConfig, parallel: ParallelConfig, world: World, seed: int = 0) -> None:
        self.world = world if parallel.dp > 1 else ALONE
        self.model = Model(config).init_weights(seed)
        placement = lay_out(self.model, parallel, self.world)
        optim = OptimConfig(ns_dtype="fp32")
        specs, groups = self.model.parameter_specs(), self.model.qk_groups()
        self.optimizer = MuonClip.from_config(specs, groups, optim, placement)

    def step(self, seed: int, *, spoilt: bool = False) -> StepResult:
        given = supervised(batch(seed), 1)[self.world.rank :: self.world.size]
        if spoilt:
            given[0] = replace(given[0], objective=lambda log_probs: log_probs.sum() * math.nan)
        settings = {"lr": 3e-3, "balance_loss_alpha": 1e-2, "bias_update_rate": 1e-2}
        return train_step(self.model, self.optimizer, given, **settings, world=self.world)


class PlainZero(Flattened):
    """What DeepSpeed does, in a few lines: so MuonClip's step on runs is tested where DeepSpeed is not installed."""

    def __init__(self, world: World, parameters: list[nn.Parameter]) -> None:
        self.size = -(-sum(parameter.numel() for parameter in parameters) // world.size)
        self.mine = slice(world.rank * self.size, (world.rank + 1) * self.size)
        self.parameters = parameters
        super().__init__(world, parameters, self._flat(world, [p.detach() for p in parameters])[self.mine].clone())

    def _flat(self, world: World, tensors: list[Tensor]) -> Tensor:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        return nn.functional.pad(flat, (0, world.size * self.size - len(flat)))

    def update(self, step: Callable[[], Result]) -> Result:
        gradients = self._flat(self.world, [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters])
        dist.all_reduce(gradients)
        self.piece.grad = gradients[self.mine]
        result = step()
        pieces = [torch.empty_like(self.piece) for _ in range(self.world.size)]
        dist.all_gather(pieces, self.piece)
        sizes = [parameter.numel() for parameter in self.parameters]
        for parameter, values in zip(self.parameters, torch.cat(pieces)[: sum(sizes)].split(sizes), strict=True):
            parameter.copy_(values.view_as(parameter))
        return result


def audited(
    world: World, model: ModelConfig, optim: OptimConfig, parallel: ParallelConfig, steps: int, folder: Path, how: str
) -> None:
    """The audit's sharded side, each process saving where it ended, with the change to the code that `how` names."""
    with CHANGES[how]():
        sharded_audit.run_steps(model, optim, parallel, world, steps).save(folder / f"{world.rank}.safetensors")


def _plain_zero() -> AbstractContextManager[Any]:
    def laid_out(model: Model, _parallel: ParallelConfig, world: World) -> PlainZero:
        return PlainZero(world, list(model.parameters()))

    return mock.patch.object(sharded_audit, "lay_out", laid_out)


def _half_gradients() -> AbstractContextManager[Any]:
    """As an average of two processes."""
    divide = FSDPModule.set_gradient_divide_factor
    return mock.patch.object(FSDPModule, "set_gradient_divide_factor", lambda unit, factor: divide(unit, 2 * factor))


def _own_counts() -> AbstractContextManager[Any]:
    total = World.sum

    def but_counts(world: World, values: Tensor) -> Tensor:
        return values if values.ndim == 2 and not values.is_floating_point() else total(world, values)

    return mock.patch.object(World, "sum", but_counts)


CHANGES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "plain ZeRO": _plain_zero,
    "averaged gradients": _half_gradients,
    "DeepSpeed's averaged gradients": lambda: mock.patch.dict(SETTINGS, gradient_allreduce_op="mean"),
    "maxima of the own process": lambda: mock.patch.object(World, "max", lambda _world, values: values),
    "counts of the own process": _own_counts,
    "clipped rows counted from the part's begin": lambda: mock.patch.object(Runs, "first_element", lambda *_: 0),
}


def _lacking() -> str:
    try:
        refuse_without_deepspeed()
    except ValueError as error:
        return str(error)
    return ""


needs_deepspeed = pytest.mark.skipif(bool(_lacking()), reason=_lacking())
ENGINES = [pytest.param(name, marks=needs_deepspeed if name == "deepspeed" else ()) for name in sharded_audit.ENGINES]
