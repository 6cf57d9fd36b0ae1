"""FLOPs per token: of the products with weights, of causal attention, and of a dense model as large.

A product of one value with one weight counts two FLOPs. Left out: softmax,
norms, activations and the optimizer's own work, each far below one percent at
K2's size except the optimizer's, which depends on the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from openk2.config import ModelConfig
from openk2.plan.parameters import plan_parameters


@dataclass(frozen=True)
class FlopsPlan:
    """Per token, at a context of `context` tokens, all of which are computed (training or prefill)."""

    context: int
    weights: int  # forward: 2 x the weights that a token is multiplied with, head included
    attention: int  # forward: scores and mixing over the (context + 1) / 2 tokens that causality leaves on average
    six_n: int  # the usual estimate for training: 6 x active parameters without the embedding, no attention
    dense_weights: int  # forward: 2 x all weights, of a model as large in which every token uses every one

    @property
    def forward(self) -> int:
        return self.weights + self.attention

    @property
    def training(self) -> int:
        """Forward, and twice that for the two products of the backward pass."""
        return 3 * self.forward

    @property
    def dense_forward(self) -> int:
        return self.dense_weights + self.attention

    @property
    def dense_ratio(self) -> float:
        """How many times more a dense model of the same total and the same attention computes."""
        return self.dense_forward / self.forward


def plan_flops(config: ModelConfig, *, context: int) -> FlopsPlan:
    """FLOPs per token at `context` tokens. Raises `ValueError` for a context below 1."""
    if context < 1:
        raise ValueError(f"context: saw {context}, expected at least 1 token")
    parameters = plan_parameters(config)
    # per head and pair of tokens: qk_head_dim products for the score, v_head_dim for the mix
    pair = 2 * config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    not_multiplied = sum(parameters.part(name).total for name in ("embedding", "router bias", "norms"))
    return FlopsPlan(
        context=context,
        weights=2 * parameters.multiplied,
        attention=config.num_hidden_layers * pair * (context + 1) // 2,
        six_n=6 * parameters.active_with_head,
        dense_weights=2 * (parameters.total - not_multiplied),
    )
