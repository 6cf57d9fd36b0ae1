"""The planner against published figures, and against counting by other means."""

from __future__ import annotations

import dataclasses

import pytest

from openk2.config import MODEL_PRESETS, ModelConfig
from openk2.plan import plan_cache, plan_flops, plan_parameters

K2 = MODEL_PRESETS["k2_1t"]


def test_k2_total_is_the_released_checkpoints() -> None:
    plan = plan_parameters(K2)
    assert plan.total == 1_026_408_232_448
    assert plan.part("router bias").total == 23_040


def test_k2_active_per_token() -> None:
    plan = plan_parameters(K2)
    assert round(plan.active / 1e9, 2) == 32.86
    assert round(plan.active_with_head / 1e9, 2) == 31.69
    assert round(plan.active_without_tables / 1e9, 2) == 30.51


def test_moonlight_is_sixteen_billion_with_three_active() -> None:
    plan = plan_parameters(MODEL_PRESETS["moonlight_16b_a3b"])
    assert round(plan.total / 1e9, 2) == 15.96
    assert round(plan.active_without_tables / 1e9, 2) == 2.24  # its report's "activated", without the tables


@pytest.mark.parametrize("name", MODEL_PRESETS)
def test_parts_against_the_tensors_listed_one_by_one(name: str) -> None:
    config = MODEL_PRESETS[name]
    assert plan_parameters(config).total == sum(tensor_sizes(config))


def tensor_sizes(config: ModelConfig) -> list[int]:
    """Every tensor of the released layout, shape by shape."""
    hidden, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    sizes = [config.vocab_size * hidden, config.vocab_size * hidden, hidden]
    for layer in range(config.num_hidden_layers):
        sizes += [hidden, hidden]
        query_rows = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
        if config.q_lora_rank is None:
            sizes += [query_rows * hidden]
        else:
            sizes += [config.q_lora_rank * hidden, config.q_lora_rank, query_rows * config.q_lora_rank]
        sizes += [(latent + config.qk_rope_head_dim) * hidden, latent]
        sizes += [heads * (config.qk_nope_head_dim + config.v_head_dim) * latent, hidden * heads * config.v_head_dim]
        if layer < config.first_k_dense_replace:
            sizes += [config.intermediate_size * hidden] * 3
        else:
            width = config.moe_intermediate_size
            sizes += [config.n_routed_experts * hidden, config.n_routed_experts]
            sizes += [width * hidden] * 3 * config.n_routed_experts
            sizes += [width * config.n_shared_experts * hidden] * 3
    return sizes


def test_flops_of_k2() -> None:
    plan = plan_flops(K2, context=4096)
    assert plan.training == 3 * plan.forward
    assert plan.six_n == 6 * plan_parameters(K2).active_with_head
    assert plan.weights * 3 == pytest.approx(plan.six_n, rel=1e-3)  # they differ by norms and biases only
    assert 29 < plan.dense_ratio < 33


def test_attention_is_the_sum_over_causal_pairs() -> None:
    config, context = MODEL_PRESETS["tiny"], 7
    pairs = sum(position + 1 for position in range(context))
    one_pair = 2 * config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    plan = plan_flops(config, context=context)
    assert plan.attention * context == config.num_hidden_layers * one_pair * pairs


def test_a_dense_model_is_its_own_measure() -> None:
    dense = dataclasses.replace(MODEL_PRESETS["tiny"], first_k_dense_replace=MODEL_PRESETS["tiny"].num_hidden_layers)
    assert plan_flops(dense, context=128).dense_ratio == 1.0


def test_flops_refuse_an_empty_context() -> None:
    with pytest.raises(ValueError, match="context: saw 0"):
        plan_flops(K2, context=0)


def test_cache_of_k2() -> None:
    plan = plan_cache(K2)
    assert plan.bytes_per_token == 70_272
    assert plan.values_per_layer == 576
    assert plan.eight_bit_bytes_per_layer == 656
    assert [round(item.ratio, 1) for item in plan.ratios] == [35.6, 28.4, 71.1, 56.9, 62.4, 50.0]
    assert all("64 heads" in item.against for item in plan.ratios)


def test_a_cache_ratio_of_128_heads_is_deepseeks() -> None:
    ratios = plan_cache(dataclasses.replace(K2, num_attention_heads=128)).ratios
    assert round(ratios[1].ratio, 1) == 56.9
