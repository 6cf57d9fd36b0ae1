"""What runs in the processes that the tests start: a module of its own, for they import it by name."""

from __future__ import annotations

import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small_training import batch, same_tensors
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from openk2.config.model import ModelConfig
from openk2.config.run import OptimConfig, ParallelConfig
from openk2.model.model import Model
from openk2.optim.muonclip import MuonClip
from openk2.parallel.layout import lay_out
from openk2.parallel.placement import Flattened, Sharded, shard_rows
from openk2.parallel.world import World, leave_world
from openk2.train.batch import supervised
from openk2.train.state import pack, unpack, whole_state
from openk2.train.step import train_step


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


def resume(world: World, config: ModelConfig, ep: int) -> None:
    """What is packed after a step, put into another model, takes the next step to the same bits."""

    def made(seed: int) -> tuple[Model, MuonClip]:
        model = Model(config).init_weights(seed)
        placement = lay_out(model, ParallelConfig(dp=world.size, ep=ep), world)
        return model, MuonClip.from_config(model.parameter_specs(), model.qk_groups(), OptimConfig(), placement)

    def step(model: Model, optimizer: MuonClip, seed: int) -> None:
        given = supervised(batch(seed), 1)
        settings = {"lr": 3e-3, "balance_loss_alpha": 1e-2, "bias_update_rate": 1e-2}
        train_step(model, optimizer, given[world.rank :: world.size], **settings, world=world)

    first, second = made(0), made(1)
    step(*first, seed=0)
    state = copy.deepcopy(pack(*first, {"place": 1}))  # as from a disk, sharing nothing
    assert unpack(state, *second) == {"place": 1}
    assert same_tensors(whole_state(second[0]), state["model"])
    assert any(router.e_score_correction_bias.any() for router in second[0].routers())
    step(*first, seed=1)
    step(*second, seed=1)
    after = pack(*first, {})
    assert same_tensors(after, pack(*second, {})) and not same_tensors(after["model"], state["model"])
    alone = Model(config)
    alone.load_state_dict(after["model"])  # a checkpoint of several processes is one of a single process too
