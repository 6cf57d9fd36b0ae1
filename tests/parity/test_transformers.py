"""The model against transformers' DeepseekV3ForCausalLM: logits, chosen experts and every gradient, in fp32."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from openk2.checkpoint.hf import copy_tensors
from openk2.checkpoint.hf_config import config_fields
from openk2.checkpoint.hf_table import Drop, weight_table
from openk2.config.model import ModelConfig, YarnConfig
from openk2.config.presets import K2_1T
from openk2.model.model import Model
from openk2.model.rope import inverse_frequencies, rotary_turns, softmax_scale

transformers = pytest.importorskip("transformers")

MAX_KL = 1e-10
MAX_GRADIENT_ERROR = 1e-5
MIN_GAP = 1e-6  # a choice decided by less than fp32 can tell is redrawn
MAX_REDRAWS = 5

BASE = ModelConfig(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    moe_intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=3,
    n_routed_experts=8,
    num_experts_per_tok=3,
    kv_lora_rank=20,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=10,
    q_lora_rank=28,
    routed_scaling_factor=2.3,
    max_position_embeddings=128,
    initializer_range=0.15,  # wide enough that scores, routing and softmax are far from uniform
)
YARN = YarnConfig(factor=8.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=1.0)
CASES = {
    "plain": {},
    "no_q_lora": {"q_lora_rank": None},
    "yarn": {"rope_scaling": YARN},
    "yarn_no_q_lora": {"rope_scaling": YARN, "q_lora_rank": None},
    "yarn_k2_betas": {"rope_scaling": dataclasses.replace(YARN, beta_fast=1.0)},
    "yarn_two_mscales": {"rope_scaling": dataclasses.replace(YARN, mscale=0.7, mscale_all_dim=1.3)},
    "yarn_no_mscale": {"rope_scaling": dataclasses.replace(YARN, mscale=0.0, mscale_all_dim=0.0)},
    "groups": {"n_group": 4, "topk_group": 2},
    "two_shared": {"n_shared_experts": 2},
    "no_dense": {"first_k_dense_replace": 0},
    "two_dense": {"first_k_dense_replace": 2, "n_shared_experts": 2},
    "weights_unnormalised": {"norm_topk_prob": False},
}
worst = {"kl": 0.0, "gradient": 0.0, "redrawn": 0.0}


def hf_model(config: ModelConfig):
    fields = config_fields(config)
    fields.pop("architectures")
    fields.pop("model_type")
    built = transformers.DeepseekV3Config(**fields, attn_implementation="eager")
    return transformers.DeepseekV3ForCausalLM(built).eval()


def draw(config: ModelConfig, seed: int):
    """A pair with equal random weights, random norms and router biases, and tokens."""
    torch.manual_seed(seed)
    reference = hf_model(config)
    with torch.no_grad():
        for name, tensor in reference.state_dict().items():
            if name.endswith("norm.weight"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("e_score_correction_bias"):
                tensor.normal_(0.0, 0.2)
            else:
                tensor.normal_(0.0, config.initializer_range)
    state = reference.state_dict()
    model = Model(config)
    copy_tensors(model, state, state.__getitem__, "transformers")
    return model, reference, torch.randint(config.vocab_size, (2, 37))


def chosen_experts(model: Model, reference, tokens):
    """(ours, theirs) sorted [L_moe, N, K], and the smallest gap between a chosen and a passed-over expert or group."""
    seen, gaps = [], []

    def watch(gate, inputs, output):
        scores = output[0].sigmoid() + gate.e_score_correction_bias
        grouped = scores.unflatten(1, (gate.num_group, -1))
        sums = grouped.topk(2, dim=-1).values.sum(-1).sort(descending=True).values
        if gate.topk_group < gate.num_group:
            gaps.append((sums[:, gate.topk_group - 1] - sums[:, gate.topk_group]).min())
        open_groups = grouped.topk(2, dim=-1).values.sum(-1) >= sums[:, gate.topk_group - 1 : gate.topk_group]
        ranked = grouped.masked_fill(~open_groups.unsqueeze(-1), -9.0).flatten(1).sort(descending=True).values
        gaps.append((ranked[:, gate.top_k - 1] - ranked[:, gate.top_k]).min())
        seen.append(output[2].sort(-1).values)

    hooks = [
        block.mlp.gate.register_forward_hook(watch) for block in reference.model.layers if hasattr(block.mlp, "gate")
    ]
    with torch.no_grad():
        reference(tokens)
        _, stats = model.hidden_states(tokens)
    for hook in hooks:
        hook.remove()
    return stats.chosen.sort(-1).values, torch.stack(seen), float(torch.stack(gaps).min())


def draw_decided(config: ModelConfig, seed: int):
    for attempt in range(MAX_REDRAWS):
        model, reference, tokens = draw(config, seed + 1000 * attempt)
        ours, theirs, gap = chosen_experts(model, reference, tokens)
        if gap >= MIN_GAP:
            assert torch.equal(ours, theirs)
            return model, reference, tokens
        worst["redrawn"] += 1
    raise AssertionError(f"{MAX_REDRAWS} draws in a row had a top-k gap under {MIN_GAP}")


def gradients_by_hf_name(model: Model) -> dict[str, torch.Tensor]:
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    out = {}
    for operation in weight_table(model.config, {f"model.layers.{i}.mlp.experts.gate_up_proj" for i in range(9)}):
        if not isinstance(operation, Drop) and operation.ours in grads:
            out.update(operation.views(grads[operation.ours]))
    return out


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_transformers(case):
    config = dataclasses.replace(BASE, **CASES[case])
    model, reference, tokens = draw_decided(config, seed=sorted(CASES).index(case))

    logits, expected = model(tokens), reference(tokens).logits
    p, q = expected.detach().double().log_softmax(-1), logits.detach().double().log_softmax(-1)
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    assert float(p.exp().amax(-1).mean()) > 1.5 / config.vocab_size  # the distributions say something
    assert abs(kl) <= MAX_KL

    # The balance loss is off: only the likelihood of the next token, by each side's own means.
    targets = torch.cat((tokens[:, 1:], torch.full((2, 1), -1)), dim=1)
    log_probs, stats = model.log_probs(tokens, targets)
    assert stats.balance_loss.requires_grad  # it is computed in training mode, and left out here
    (-log_probs.sum()).backward()
    theirs = expected[:, :-1].float().log_softmax(-1).gather(-1, tokens[:, 1:, None])
    (-theirs.sum()).backward()

    ours = gradients_by_hf_name(model)
    expected_grads = {name: parameter.grad for name, parameter in reference.named_parameters()}
    assert ours.keys() == expected_grads.keys()
    errors = {name: float((ours[name] - g).norm() / g.norm()) for name, g in expected_grads.items()}
    assert all(float(g.norm()) > 0 for g in expected_grads.values())
    name = max(errors, key=errors.__getitem__)
    assert errors[name] <= MAX_GRADIENT_ERROR, name

    worst["kl"], worst["gradient"] = max(worst["kl"], abs(kl)), max(worst["gradient"], errors[name])
    print(f"{case}: KL {kl:.1e}, worst gradient {errors[name]:.1e} ({name}); worst so far {worst}")


def test_parity_would_see_a_wrong_rotation():
    """De-interleaved keys against interleaved queries, the classic slip, moves the KL far past the bound."""
    model, reference, tokens = draw_decided(BASE, seed=99)
    for block in model.layers:
        rows = block.self_attn.kv_a_proj_with_mqa.weight.data[-BASE.qk_rope_head_dim :]
        rows.copy_(torch.cat((rows[0::2], rows[1::2])))
    with torch.no_grad():
        p, q = reference(tokens).logits.double().log_softmax(-1), model(tokens).double().log_softmax(-1)
    assert float((p.exp() * (p - q)).sum(-1).mean()) > 1000 * MAX_KL


def test_yarn_facts_of_k2():
    """Pairs 0-19 keep their frequency, 20-31 are divided by 32; the softmax scale is 0.130861, the ratio 1."""
    plain = inverse_frequencies(dataclasses.replace(K2_1T, rope_scaling=None))
    stretched = inverse_frequencies(K2_1T)
    assert torch.equal(stretched[:20], plain[:20])
    torch.testing.assert_close(stretched[20:], plain[20:] / 32, rtol=1e-6, atol=0)
    assert softmax_scale(K2_1T) == pytest.approx(0.130861, abs=5e-7)
    assert softmax_scale(dataclasses.replace(K2_1T, rope_scaling=None)) == pytest.approx(192**-0.5)
    torch.testing.assert_close(rotary_turns(K2_1T, 3).abs(), torch.ones(3, 32))
