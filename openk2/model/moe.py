"""Mixture of experts: sigmoid router with a selection-only bias, routed and shared SwiGLU experts.

Invariants: the router computes in fp32 whatever the model's dtype;
`e_score_correction_bias` decides which experts are chosen and never enters
their weights; it receives no gradient and is moved by `update_bias` alone,
from the counts of the forward passes that an optimizer step was made of.
Source: DeepSeek-V3 (arXiv 2412.19437), section 2.1.2; K2's released config.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from openk2.config.model import ModelConfig
from openk2.ops.experts import routed_experts
from openk2.ops.fused import swiglu_mlp
from openk2.ops.invariant import wide_linear
from openk2.ops.recompute import KEEP, Recompute


class Routing(NamedTuple):
    """Of N tokens: the chosen experts int [N, K], their weights fp32 [N, K], all scores fp32 [N, E]."""

    chosen: Tensor
    weights: Tensor
    scores: Tensor


class Router(nn.Module):
    """Hugging Face's `mlp.gate`."""

    e_score_correction_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Moves the bias with the module but keeps it fp32: `model.to(bfloat16)` would swallow steps of 0.001."""
        exact = self.e_score_correction_bias
        super()._apply(fn, recurse)
        if self.e_score_correction_bias.dtype != torch.float32:
            self.e_score_correction_bias = exact.to(self.e_score_correction_bias.device)
        return self

    def _select(self, scores: Tensor) -> Tensor:
        """Top experts by score + bias, within the best groups where the config has groups: int [N, K]."""
        config = self.config
        choice = scores + self.e_score_correction_bias
        if config.n_group > 1:
            grouped = choice.unflatten(1, (config.n_group, -1))
            best = grouped.topk(2, dim=-1).values.sum(-1).topk(config.topk_group, dim=-1).indices
            kept = torch.zeros(grouped.shape[:2], dtype=torch.bool, device=scores.device).scatter_(1, best, True)
            choice = grouped.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(1)
        return choice.topk(config.num_experts_per_tok, dim=-1, sorted=False).indices

    def forward(self, x: Tensor, chosen: Tensor | None = None, again: Recompute = KEEP) -> Routing:
        """x [N, D]; `chosen` [N, K] replays a recorded choice instead of making one."""
        scores = wide_linear(again(Tensor.float, x), self.weight.float()).sigmoid()
        if chosen is None:
            chosen = self._select(scores.detach())
        weights = scores.gather(1, chosen)
        if self.config.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return Routing(chosen, weights * self.config.routed_scaling_factor, scores)

    @torch.no_grad()
    def update_bias(self, counts: Tensor, rate: float) -> None:
        """Raise the bias of under-used experts and lower that of over-used ones; its mean stays.

        counts [E] of one optimizer step. b += rate * (sign(e) - mean sign(e))
        with e = mean load - load (Moonlight's rule, arXiv 2502.16982, appendix C).
        """
        direction = torch.sign(counts.float().mean() - counts.float())
        self.e_score_correction_bias += rate * (direction - direction.mean())


def balance_loss(routing: Routing, documents: Tensor, num_documents: int, num_tokens: Tensor) -> Tensor:
    """DeepSeek-V3's sequence-wise balance loss (arXiv 2412.19437, section 2.1.2), averaged with documents' lengths.

    For a document of T routed tokens: sum_i f_i P_i with f_i = E/(K T) * tokens
    that chose i, P_i = mean of expert i's share of the token's scores.
    `documents` int [N] numbers the tokens' documents (padding: -1, left out);
    `num_tokens` is the micro-batch's real tokens, routed or not, by which the
    sum over documents is divided, so that a packed batch equals its documents
    taken one by one. Perfect balance of all tokens gives 1.
    """
    num_experts, top_k = routing.scores.shape[1], routing.chosen.shape[1]
    real = documents >= 0
    index = documents.clamp(min=0)
    share = routing.scores / routing.scores.sum(-1, keepdim=True)
    share = share * real.unsqueeze(-1)
    zeros = torch.zeros(num_documents, num_experts, dtype=share.dtype, device=share.device)
    mean_share = zeros.index_add(0, index, share)  # T P_i
    with torch.no_grad():
        slots = (index.unsqueeze(-1) * num_experts + routing.chosen)[real].flatten()
        counts = torch.bincount(slots, minlength=zeros.numel()).view_as(zeros).to(share.dtype)
        lengths = torch.bincount(index[real], minlength=num_documents).clamp(min=1).to(share.dtype)
    per_document = (counts * mean_share).sum(-1) * (num_experts / top_k) / lengths  # T * sum f_i P_i
    return per_document.sum() / num_tokens.clamp(min=1)  # a micro-batch may be padding alone


class Experts(nn.Module):
    """The routed experts' weights, stacked: `gate_up_proj` [E, 2F, D] (gate rows first), `down_proj` [E, D, F]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x: Tensor, routing: Routing, *, regather: bool = False) -> Tensor:
        """x [N, D] -> [N, D]; with `regather` the backward pass sorts x by expert again, and keeps no sorted copy."""
        gate_up, down = self.gate_up_proj.to(x.dtype), self.down_proj.to(x.dtype)
        return routed_experts(x, routing.chosen, routing.weights, gate_up, down, regather=regather)


class MLP(nn.Module):
    """Dense SwiGLU: `gate_up_proj` [2F, D] (gate rows first), `down_proj` [D, F]."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        return swiglu_mlp(x, self.gate_up_proj.to(x.dtype), self.down_proj.to(x.dtype))


class MixtureOfExperts(nn.Module):
    """Routed experts plus the shared one(s): x [N, D] -> [N, D] and the routing."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = (
            MLP(config.hidden_size, config.n_shared_experts * config.moe_intermediate_size)
            if config.n_shared_experts
            else None
        )

    def forward(self, x: Tensor, chosen: Tensor | None = None, again: Recompute = KEEP) -> tuple[Tensor, Routing]:
        routing = self.gate(x, chosen, again)
        out = self.experts(x, routing, regather=again.enabled)
        if self.shared_experts is not None:
            out = out + self.shared_experts(x)
        return out, routing
