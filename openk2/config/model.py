"""Shape of the network, in the field names of Hugging Face's `deepseek_v3` config.

Invariants: everything is an integer, float or None, nothing is derived from a
device, and no torch is imported, so that the planner can read the 1T shape on
a machine without it. Left out: tied embeddings and multi-token prediction,
which K2 does not use.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class YarnConfig:
    """YaRN rotary scaling; the defaults are K2's (factor 32 over 4,096 positions)."""

    factor: float = 32.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 1.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0

    def __post_init__(self) -> None:
        if self.factor < 1 or self.original_max_position_embeddings < 1:
            raise ValueError(
                f"rope_scaling.factor: saw {self.factor} over {self.original_max_position_embeddings} positions, "
                f"expected both at least 1"
            )
        if not 0 < self.beta_slow <= self.beta_fast:
            raise ValueError(
                f"rope_scaling.beta_slow: saw {self.beta_slow}, "
                f"expected above 0 and at most beta_fast ({self.beta_fast})"
            )


@dataclass(frozen=True)
class ModelConfig:
    """A multi-head latent attention, mixture-of-experts decoder.

    `q_lora_rank` None means one full query projection (Moonlight has none).
    `first_k_dense_replace` leading layers use a dense SwiGLU of width
    `intermediate_size`; the others route to `num_experts_per_tok` of
    `n_routed_experts` experts of width `moe_intermediate_size` and add
    `n_shared_experts` shared ones. `n_group`/`topk_group` limit routing to
    groups of experts (1 in K2: no limit).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    n_routed_experts: int
    num_experts_per_tok: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None
    n_shared_experts: int = 1
    first_k_dense_replace: int = 1
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    max_position_embeddings: int = 4096
    rope_theta: float = 50000.0
    rope_scaling: YarnConfig | None = None
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query and key: the nope and the rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Values cached per token and layer: the latent and the shared rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def num_moe_layers(self) -> int:
        return self.num_hidden_layers - self.first_k_dense_replace

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "moe_intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "n_routed_experts",
            "num_experts_per_tok",
            "kv_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
            "n_group",
            "topk_group",
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}: saw {getattr(self, name)}, expected at least 1")
        for name in ("routed_scaling_factor", "rope_theta", "rms_norm_eps", "initializer_range"):
            if getattr(self, name) <= 0:
                raise ValueError(f"model.{name}: saw {getattr(self, name)}, expected above 0")
        if self.q_lora_rank is not None and self.q_lora_rank < 1:
            raise ValueError(f"model.q_lora_rank: saw {self.q_lora_rank}, expected at least 1, or none")
        if self.n_shared_experts < 0:
            raise ValueError(f"model.n_shared_experts: saw {self.n_shared_experts}, expected at least 0")
        if self.qk_rope_head_dim % 2:
            raise ValueError(
                f"model.qk_rope_head_dim: saw {self.qk_rope_head_dim}, expected an even number (rotary pairs)"
            )
        if not 0 <= self.first_k_dense_replace <= self.num_hidden_layers:
            raise ValueError(
                f"model.first_k_dense_replace: saw {self.first_k_dense_replace}, "
                f"expected 0 to num_hidden_layers ({self.num_hidden_layers})"
            )
        if self.n_routed_experts % self.n_group or self.topk_group > self.n_group:
            raise ValueError(
                f"model.n_group: saw {self.n_group} groups (topk_group {self.topk_group}), expected a divisor of "
                f"n_routed_experts ({self.n_routed_experts}) that is at least topk_group"
            )
        reachable = self.n_routed_experts // self.n_group * self.topk_group
        if self.num_experts_per_tok > reachable:
            raise ValueError(
                f"model.num_experts_per_tok: saw {self.num_experts_per_tok}, expected at most {reachable}, "
                f"the experts in topk_group ({self.topk_group}) of n_group ({self.n_group}) groups"
            )
