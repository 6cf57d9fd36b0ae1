"""The model as a whole: size, initial weights, optimizer routes, QK-Clip groups, statistics."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from openk2.config.model import ModelConfig
from openk2.config.presets import K2_1T, MOONLIGHT_16B_A3B, TINY
from openk2.model.model import Model
from openk2.model.moe import MLP

SMALL = ModelConfig(
    vocab_size=37,
    hidden_size=24,
    intermediate_size=40,
    moe_intermediate_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    n_routed_experts=4,
    num_experts_per_tok=2,
    kv_lora_rank=8,
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=5,
    q_lora_rank=12,
    max_position_embeddings=64,
)


def test_the_1t_model_has_k2s_size():
    """Every released weight, the 60 x 384 router biases included, and nothing else."""
    with torch.device("meta"):
        model = Model(K2_1T)
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == 1_026_408_232_448
    assert sum(tensor.numel() for tensor in model.buffers()) == 60 * 384
    assert {str(t.device) for t in model.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("preset", [TINY, MOONLIGHT_16B_A3B, K2_1T], ids=["tiny", "moonlight", "k2"])
def test_specs_cover_every_parameter_once_in_matrices_of_its_size(preset):
    with torch.device("meta"):
        model = Model(preset)
    specs = model.parameter_specs()
    parameters = dict(model.named_parameters())
    assert [spec.name for spec in specs] == list(parameters)
    for spec in specs:
        assert spec.parameter is parameters[spec.name]
        if spec.route == "muon":
            count, rows, columns = spec.matrices
            assert count * rows * columns == spec.parameter.numel() and columns == spec.parameter.shape[-1]
            fused = spec.name.endswith("gate_up_proj")
            assert count == (2 if fused else 1) * (preset.n_routed_experts if spec.role == "experts" else 1)
        else:
            assert spec.route == "adamw" and spec.matrices is None
            assert spec.parameter.ndim == 1 or spec.role in ("embedding", "head")
    roles = {spec.role for spec in specs}
    assert roles == {"attention", "mlp", "experts", "router", "embedding", "head", "norm"}
    assert all(spec.route == "muon" for spec in specs if spec.role == "router")


def test_init_is_decided_by_the_seed_and_has_the_stated_width():
    first, second, other = (Model(TINY).init_weights(seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    for name, tensor in first.items():
        if name.endswith("norm.weight"):
            assert bool((tensor == 1).all())
        elif name.endswith("e_score_correction_bias"):
            assert not tensor.any()
        else:
            assert float(tensor.std()) == pytest.approx(TINY.initializer_range, rel=0.05), name
            # within five standard errors of a mean of zero
            assert abs(float(tensor.mean())) < 5 * TINY.initializer_range / tensor.numel() ** 0.5, name


def test_init_does_not_touch_the_global_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with torch.device("meta"):
        model = Model(SMALL)
    model.to_empty(device="cpu").init_weights(0)
    assert torch.equal(before, torch.get_rng_state())


def test_max_scores_are_the_explicit_maxima_of_each_head():
    """From queries and keys built by hand out of the weights, causally, over both rows."""
    model = Model(dataclasses.replace(SMALL, initializer_range=0.3)).init_weights(2)
    ids = torch.randint(37, (2, 10), generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    block = model.layers[0]
    block.self_attn.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        _, stats = model.hidden_states(ids)
        attention, x = block.self_attn, seen[0]
        turns = model.rotary(torch.arange(10).expand(2, 10))
        nope, rope = attention._queries(attention._query_latent(x), turns).transpose(1, 2).split((6, 4), dim=-1)
        latent, key_rope = attention.latents(x, turns)
        unfolded = (latent @ attention.kv_b_proj.weight.t()).unflatten(-1, (2, -1))[..., :6]
        scores = torch.einsum("bihd,bjhd->bhij", nope, unfolded.reshape(2, 10, 2, 6))
        scores += torch.einsum("bihd,bjd->bhij", rope, key_rope.view(2, 10, 4))
        scores = (scores * SMALL.qk_head_dim**-0.5).masked_fill(torch.ones(10, 10).triu(1).bool(), -torch.inf)
    assert stats.max_scores.shape == (3, 2)
    torch.testing.assert_close(stats.max_scores[0], scores.amax((0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_maxima_near_tau_are_exact_in_bf16():
    """With a threshold in sight the rounded maximum is replaced: it equals the fp32 product of the bf16 inputs."""
    config = dataclasses.replace(SMALL, initializer_range=0.4)
    ids = torch.randint(37, (1, 12), generator=torch.Generator().manual_seed(0))
    model = Model(config, compute_dtype=torch.bfloat16).init_weights(2)
    with torch.no_grad():
        rounded = model.hidden_states(ids)[1].max_scores
        model.qk_clip_tau = float(rounded.max())
        exact = model.hidden_states(ids)[1].max_scores
        model.qk_clip_tau = 1e6
        far = model.hidden_states(ids)[1].max_scores
    assert torch.equal(far, rounded) and not torch.equal(exact, rounded)
    assert bool(((exact - rounded).abs() <= 2.0**-8 * exact.abs()).all())


def test_qk_groups_name_the_weights_that_make_the_scores():
    for config in (SMALL, dataclasses.replace(SMALL, q_lora_rank=None)):
        model = Model(config).init_weights(0)
        groups = model.qk_groups()
        assert [group.name for group in groups] == [f"layers.{i}.self_attn" for i in range(3)]
        for group, block in zip(groups, model.layers, strict=True):
            query_nope, query_rope, key = group.rows
            assert query_nope.weight is query_rope.weight is block.self_attn.query_weight
            assert key.weight is block.self_attn.kv_b_proj.weight
            for rows in group.rows:
                assert rows.weight.shape[0] == group.num_heads * rows.per_head
            widths = [(rows.per_head, rows.first, rows.last, rows.power) for rows in group.rows]
            nope, rope, value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
            assert widths == [
                (nope + rope, 0, nope, 0.5),
                (nope + rope, nope, nope + rope, 1.0),
                (nope + value, 0, nope, 0.5),
            ]


def test_log_probs_are_those_of_the_logits_and_skip_negative_targets():
    model = Model(SMALL).init_weights(0)
    ids = torch.randint(37, (2, 8))
    targets = torch.randint(37, (2, 8))
    targets[0, 3:] = -100
    found, _ = model.log_probs(ids, targets)
    expected = model(ids).log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    assert not found[0, 3:].any()
    torch.testing.assert_close(found[targets >= 0], expected[targets >= 0], rtol=1e-5, atol=1e-5)
    nothing, _ = model.log_probs(ids, torch.full_like(ids, -1))
    assert not nothing.any()


def test_bf16_products_with_fp32_weights_equal_stored_bf16_weights():
    """Casting where a weight is used and storing it cast are one arithmetic; gradients arrive in the stored dtype."""
    ids = torch.randint(37, (1, 12), generator=torch.Generator().manual_seed(0))
    master = Model(SMALL, compute_dtype=torch.bfloat16).init_weights(0)
    stored = Model(SMALL, compute_dtype=torch.bfloat16)
    stored.load_state_dict(master.state_dict())
    # The router alone reads its weight in fp32, so give both the value that bf16 can hold.
    for gate, other in zip(master.routers(), stored.routers(), strict=True):
        gate.weight.data.copy_(gate.weight.data.bfloat16())
        other.weight.data.copy_(gate.weight.data)
    stored.to(torch.bfloat16)
    assert torch.equal(master(ids), stored(ids))
    master.log_probs(ids, ids)[0].sum().backward()
    assert {parameter.grad.dtype for parameter in master.parameters()} == {torch.float32}


def test_all_dense_and_no_shared_expert():
    ids = torch.randint(37, (1, 5))
    dense = Model(dataclasses.replace(SMALL, first_k_dense_replace=3)).init_weights(0)
    _, stats = dense.hidden_states(ids)
    assert stats.expert_counts.shape == (0, 4) and stats.chosen.shape[0] == 0 and float(stats.balance_loss) == 0
    assert all(isinstance(block.mlp, MLP) for block in dense.layers) and dense.routers() == []
    bare = Model(dataclasses.replace(SMALL, n_shared_experts=0)).init_weights(0)
    assert bare(ids).shape == (1, 5, 37) and not any("shared" in name for name in bare.state_dict())
