"""How a model is laid out over a world, in one order: experts placed, then parameters sharded.

Everything else about a model stays as it is: its class, its parameters' names,
its forward. Left out: pipeline and tensor parallelism.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from openk2.config.run import ParallelConfig
from openk2.model.model import Model
from openk2.model.moe import Experts, MixtureOfExperts
from openk2.optim.placement import WHOLE
from openk2.parallel.expert import DispatchedExperts
from openk2.parallel.placement import Sharded
from openk2.parallel.world import World
from openk2.protocols import Placement

_ENTRANCES = ("hidden_states", "log_probs", "logits")  # what callers run of a model, beside its forward


def lay_out(model: Model, config: ParallelConfig, world: World) -> Placement:
    """Shard `model` in place; returns the placement that its optimizer needs.

    Every parameter is sharded by rows of its first dimension (FSDP2), layer by layer; with `ep` the experts' are
    sharded by expert instead and never brought together. Gradients are summed over processes, not averaged: losses
    are divided by the whole step's totals.
    """
    if world.size == 1:
        return WHOLE
    placed: set[nn.Parameter] = set()
    if config.ep > 1:
        for block in model.blocks():
            if isinstance(block.mlp, MixtureOfExperts):
                experts = DispatchedExperts(block.mlp.experts, world)
                block.mlp.experts = cast(Experts, experts)
                placed.update(experts.parameters())
    for unit in (*model.blocks(), model):
        fully_shard(unit, mesh=world.mesh, ignored_params=placed)
        cast(FSDPModule, unit).set_gradient_divide_factor(1.0)
        cast(FSDPModule, unit).set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
    for name in _ENTRANCES:
        register_fsdp_forward_method(model, name)
    return Sharded(world)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor brought together on every process; any other one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_like(part: Tensor, parameter: Tensor) -> Tensor:
    """An optimizer's state, sharded like its parameter, brought together on every process."""
    if not isinstance(parameter, DTensor) or part.ndim == 0:
        return part
    shaped = DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return shaped.full_tensor()


@torch.no_grad()
def part_like(tensor: Tensor, parameter: Tensor, placement: Placement) -> Tensor:
    """This process's part of a whole tensor shaped like `parameter`."""
    if not isinstance(parameter, DTensor) or tensor.ndim == 0:
        return tensor
    first = placement.first_row(parameter)
    return tensor[first : first + parameter.to_local().shape[0]].clone()
