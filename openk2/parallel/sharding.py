"""How a model is laid out over a world, in one order: experts placed, then parameters sharded.

Everything else about a model stays as it is: its class, its parameters' names,
its forward. Left out: pipeline and tensor parallelism.
"""

from __future__ import annotations

from typing import cast

from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from openk2.config.run import ParallelConfig
from openk2.model.model import Model
from openk2.model.moe import Experts, MixtureOfExperts
from openk2.optim.placement import WHOLE
from openk2.parallel.deepspeed import refuse_without_deepspeed, zero_one
from openk2.parallel.expert import DispatchedExperts
from openk2.parallel.placement import Sharded
from openk2.parallel.world import World
from openk2.protocols import Placement

_ENTRANCES = ("hidden_states", "log_probs", "logits")  # what callers run of a model, beside its forward


def refuse_unavailable(config: ParallelConfig) -> None:
    """ValueError where what the config asks for is not installed: before anything is started or made."""
    if config.engine == "deepspeed":
        refuse_without_deepspeed()


def lay_out(model: Model, config: ParallelConfig, world: World) -> Placement:
    """Shard `model` in place; returns the placement that its optimizer needs.

    Every parameter is sharded by rows of its first dimension (FSDP2), layer by layer; with `ep` the experts' are
    sharded by expert instead and never brought together. With engine "deepspeed" parameters stay whole on every
    process, and the optimizer's state is cut (ZeRO-1). Gradients are summed over processes, not averaged: losses
    are divided by the whole step's totals.
    """
    if world.size == 1:
        return WHOLE
    if config.engine == "deepspeed":
        return zero_one(model, world)
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
