"""Model shapes by name. Figures of K2 and Moonlight come from their released config.json files."""

from __future__ import annotations

from openk2.config.model import ModelConfig, YarnConfig

TINY = ModelConfig(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=768,
    moe_intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    n_routed_experts=16,
    num_experts_per_tok=4,
    n_shared_experts=1,
    q_lora_rank=128,
    kv_lora_rank=128,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
    routed_scaling_factor=2.0,
    max_position_embeddings=2048,
    initializer_range=0.05,
)

SMALL = ModelConfig(
    vocab_size=16384,
    hidden_size=512,
    intermediate_size=1536,
    moe_intermediate_size=256,
    num_hidden_layers=8,
    num_attention_heads=8,
    n_routed_experts=32,
    num_experts_per_tok=4,
    n_shared_experts=1,
    q_lora_rank=256,
    kv_lora_rank=128,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
    routed_scaling_factor=2.0,
    max_position_embeddings=4096,
)

MOONLIGHT_16B_A3B = ModelConfig(
    vocab_size=163840,
    hidden_size=2048,
    intermediate_size=11264,
    moe_intermediate_size=1408,
    num_hidden_layers=27,
    num_attention_heads=16,
    n_routed_experts=64,
    num_experts_per_tok=6,
    n_shared_experts=2,
    q_lora_rank=None,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    routed_scaling_factor=2.446,
    max_position_embeddings=8192,
    rope_theta=50000.0,
    rms_norm_eps=1e-5,
)

K2_1T = ModelConfig(
    vocab_size=163840,
    hidden_size=7168,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    num_hidden_layers=61,
    num_attention_heads=64,
    n_routed_experts=384,
    num_experts_per_tok=8,
    n_shared_experts=1,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    routed_scaling_factor=2.827,
    max_position_embeddings=131072,
    rope_theta=50000.0,
    rope_scaling=YarnConfig(),
)

MODEL_PRESETS: dict[str, ModelConfig] = {
    "tiny": TINY,
    "small": SMALL,
    "moonlight_16b_a3b": MOONLIGHT_16B_A3B,
    "k2_1t": K2_1T,
}
