"""Expert parallelism: each process holds some of the experts, and tokens travel to them and back.

What it is: the routed experts' module with its weights sharded by expert. A
(token, choice) pair goes to the process that holds the chosen expert, which runs
the same grouped operation as a single process does, and its result comes home,
where it is weighted and summed. Tokens travel in one all-to-all each way, as do
their gradients; two smaller ones go ahead, of the sizes and the experts asked
for. Invariant: the host waits once for the sizes that go and come. Source:
GShard (arXiv 2006.16668), section 3; DeepSeek-V3 (arXiv 2412.19437), section 3.2.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from openk2.model.moe import Experts, Routing
from openk2.ops.experts import routed_experts
from openk2.parallel.placement import shard_rows
from openk2.parallel.world import World


class DispatchedExperts(nn.Module):
    """`Experts` whose `gate_up_proj` [E, 2F, D] and `down_proj` [E, D, F] are sharded over the world by expert."""

    def __init__(self, experts: Experts, world: World) -> None:
        super().__init__()
        assert world.mesh is not None
        self.world = world
        held = shard_rows(experts.gate_up_proj.shape[0], world.size)
        # Expert -> the process that holds it, and its place there.
        self.owner = torch.repeat_interleave(torch.arange(world.size), torch.tensor(held))
        self.place = torch.cat([torch.arange(count) for count in held])
        first = sum(held[: world.rank])
        for name, weight in experts.named_parameters():
            local = weight.detach()[first : first + held[world.rank]].clone()
            whole = DTensor.from_local(
                local, world.mesh, [Shard(0)], run_check=False, shape=weight.shape, stride=weight.stride()
            )
            self.register_parameter(name, nn.Parameter(whole))

    def forward(self, x: Tensor, routing: Routing, *, regather: bool = False) -> Tensor:
        """x [N, D] of this process's tokens: [N, D]."""
        num_tokens, top_k = routing.chosen.shape
        expert = routing.chosen.flatten()
        owner = self.owner.to(x.device)[expert]
        order = owner.argsort(stable=True)  # pairs by the process they go to
        leaving = torch.bincount(owner, minlength=self.world.size)
        arriving = torch.empty_like(leaving)
        dist.all_to_all_single(arriving, leaving)
        sizes = (leaving.tolist(), arriving.tolist())
        rows = _exchange(x.index_select(0, order // top_k), *sizes)
        place = _exchange_ids(self.place.to(x.device)[expert[order]], *sizes)
        out = self._run(rows, place[:, None], regather)
        home = _exchange(out, *reversed(sizes))
        pairs = torch.empty_like(home).index_copy(0, order, home).view(num_tokens, top_k, -1)
        return (pairs * routing.weights.unsqueeze(-1)).sum(1).to(x.dtype)

    def _run(self, rows: Tensor, place: Tensor, regather: bool) -> Tensor:
        gate_up, down = (cast(DTensor, p).to_local().to(rows.dtype) for p in (self.gate_up_proj, self.down_proj))
        if not len(rows) or not len(gate_up):  # nobody came, or nothing is held: an edge to the weights, for gradients
            return rows + 0.0 * (gate_up.sum() + down.sum())
        ones = torch.ones(place.shape, dtype=torch.float32, device=rows.device)
        return routed_experts(rows, place, ones, gate_up, down, regather=regather)


class _Exchange(torch.autograd.Function):
    """Rows to where they belong; their gradients go back the way they came."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, leaving: list[int], arriving: list[int]) -> Tensor:  # type: ignore[override]
        ctx.sizes = (leaving, arriving)
        received = rows.new_empty(sum(arriving), rows.shape[1])
        dist.all_to_all_single(received, rows.contiguous(), arriving, leaving)
        return received

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        leaving, arriving = ctx.sizes
        received = grad.new_empty(sum(leaving), grad.shape[1])
        dist.all_to_all_single(received, grad.contiguous(), leaving, arriving)
        return received, None, None


def _exchange(rows: Tensor, leaving: list[int], arriving: list[int]) -> Tensor:
    return cast(Tensor, _Exchange.apply(rows, leaving, arriving))


def _exchange_ids(ids: Tensor, leaving: list[int], arriving: list[int]) -> Tensor:
    received = ids.new_empty(sum(arriving))
    dist.all_to_all_single(received, ids.contiguous(), arriving, leaving)
    return received
