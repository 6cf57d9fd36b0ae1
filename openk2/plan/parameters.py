"""How many parameters a model has, and how many a token uses.

Counted part by part from the config. The router's selection biases count:
they are in the released checkpoint (K2: 384 x 60 = 23,040), though no gradient
trains them. Left out: FP8 scales and the rotary buffers, which are no weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from openk2.config import ModelConfig


@dataclass(frozen=True)
class Part:
    """One kind of parameter, over all its layers.

    `active` are those that one token uses; `multiplied` those of them that
    are factors of a matrix product (no norms, no biases, no embedding row).
    """

    name: str
    total: int
    active: int
    multiplied: int


@dataclass(frozen=True)
class ParameterPlan:
    """Parts and their sums. `active` follows DeepSeek's and K2's reports: embedding and head count in full."""

    parts: tuple[Part, ...]

    @property
    def total(self) -> int:
        return sum(part.total for part in self.parts)

    @property
    def active(self) -> int:
        """Per token, with the whole embedding and the whole head."""
        return sum(part.active for part in self.parts)

    @property
    def active_with_head(self) -> int:
        """Per token, with one of the two tables: the embedding is a look-up, the head a product."""
        return self.active - self.part("embedding").active

    @property
    def active_without_tables(self) -> int:
        """Per token, with neither embedding nor head."""
        return self.active_with_head - self.part("head").active

    @property
    def multiplied(self) -> int:
        """Per token, in matrix products only: what costs two FLOPs each on the way forward."""
        return sum(part.multiplied for part in self.parts)

    def part(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)


def plan_parameters(config: ModelConfig) -> ParameterPlan:
    """The parameter table of a model."""
    layers, moe_layers, dense_layers = config.num_hidden_layers, config.num_moe_layers, config.first_k_dense_replace
    table = config.vocab_size * config.hidden_size
    expert = 3 * config.hidden_size * config.moe_intermediate_size  # gate, up, down
    experts, chosen = moe_layers * config.n_routed_experts, moe_layers * config.num_experts_per_tok
    return ParameterPlan(
        (
            Part("embedding", table, table, 0),
            _used("attention", layers * attention_weights(config)),
            _used("dense mlp", dense_layers * 3 * config.hidden_size * config.intermediate_size),
            Part("routed experts", experts * expert, chosen * expert, chosen * expert),
            _used("shared experts", moe_layers * config.n_shared_experts * expert),
            _used("router", experts * config.hidden_size),
            _added("router bias", experts),
            _added("norms", layers * _norms(config) + config.hidden_size),
            _used("head", table),
        )
    )


def _used(name: str, count: int) -> Part:
    return Part(name, count, count, count)


def _added(name: str, count: int) -> Part:
    return Part(name, count, count, 0)


def attention_weights(config: ModelConfig) -> int:
    """Weights of one layer's attention matrices."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    query_width = heads * config.qk_head_dim
    if config.q_lora_rank is None:
        query = hidden * query_width
    else:
        query = config.q_lora_rank * (hidden + query_width)
    key_value = hidden * config.latent_dim + config.kv_lora_rank * heads * (config.qk_nope_head_dim + config.v_head_dim)
    return query + key_value + heads * config.v_head_dim * hidden


def _norms(config: ModelConfig) -> int:
    """Gains of one layer: before attention and MLP, and inside the low-rank projections."""
    return 2 * config.hidden_size + config.kv_lora_rank + (config.q_lora_rank or 0)
