"""The router's properties: what its bias decides, what it never touches, and what is counted."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from openk2.config.model import ModelConfig
from openk2.model.layout import Layout
from openk2.model.model import Model
from openk2.model.moe import Router, balance_loss

CONFIG = ModelConfig(
    vocab_size=31,
    hidden_size=16,
    intermediate_size=24,
    moe_intermediate_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    n_routed_experts=8,
    num_experts_per_tok=2,
    kv_lora_rank=8,
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=5,
    routed_scaling_factor=2.5,
    max_position_embeddings=64,
)


def router(**changes) -> Router:
    torch.manual_seed(0)
    built = Router(dataclasses.replace(CONFIG, **changes))
    torch.nn.init.normal_(built.weight, std=0.3)
    return built


def test_bias_selects_and_never_enters_the_weights():
    gate, x = router(), torch.randn(20, 16)
    before = gate(x)
    gate.e_score_correction_bias[5] = 10.0
    after = gate(x)
    assert bool((after.chosen == 5).any(1).all())
    assert torch.equal(before.scores, after.scores)
    chosen_scores = after.scores.gather(1, after.chosen)
    expected = 2.5 * chosen_scores / chosen_scores.sum(1, keepdim=True)
    torch.testing.assert_close(after.weights, expected)
    # A choice with the same experts has the same weights whatever the bias that made it.
    again = gate(x, before.chosen)
    assert torch.equal(again.weights, before.weights) and torch.equal(again.chosen, before.chosen)


def test_bias_gets_no_gradient_and_is_no_parameter():
    gate = router()
    assert [name for name, _ in gate.named_parameters()] == ["weight"]
    gate(torch.randn(4, 16)).weights.sum().backward()
    assert gate.e_score_correction_bias.grad is None and not gate.e_score_correction_bias.requires_grad


def test_groups_limit_the_choice():
    gate = router(n_group=4, topk_group=1)
    chosen = gate(torch.randn(50, 16)).chosen
    assert torch.equal(chosen[:, 0] // 2, chosen[:, 1] // 2)  # both from one group of two experts
    gate.e_score_correction_bias -= 5.0  # negative scores still beat experts outside the group
    lowered = gate(torch.randn(50, 16)).chosen
    assert torch.equal(lowered[:, 0] // 2, lowered[:, 1] // 2)


def test_unnormalised_weights_are_scaled_scores():
    gate = router(norm_topk_prob=False)
    routing = gate(torch.randn(5, 16))
    torch.testing.assert_close(routing.weights, 2.5 * routing.scores.gather(1, routing.chosen))


def test_fp32_in_a_bf16_model():
    model = Model(CONFIG, compute_dtype=torch.bfloat16).init_weights(0)
    exact = torch.linspace(-0.1, 0.1, 8) + 1e-4
    model.routers()[0].e_score_correction_bias.copy_(exact)
    model.to(torch.bfloat16)
    gate = model.routers()[0]
    assert gate.weight.dtype == torch.bfloat16
    assert gate.e_score_correction_bias.dtype == torch.float32
    assert torch.equal(gate.e_score_correction_bias, exact)
    x = torch.randn(6, 16).bfloat16()
    routing = gate(x)
    assert routing.scores.dtype == routing.weights.dtype == torch.float32
    torch.testing.assert_close(routing.scores, (x.float() @ gate.weight.float().t()).sigmoid())


def test_the_bias_moves_between_devices_with_the_module():
    gate = router().to("meta")
    assert gate.e_score_correction_bias.is_meta and gate.to(torch.bfloat16).e_score_correction_bias.is_meta
    back = gate.to_empty(device="cpu")
    assert back.weight.dtype == torch.bfloat16 and back.e_score_correction_bias.dtype == torch.float32


def test_update_raises_the_underused_and_keeps_the_mean():
    gate = router()
    gate.e_score_correction_bias.copy_(torch.tensor([0.3, 0.1, 0.0, 0.0, -0.1, 0.2, 0.0, 0.0]))
    before = gate.e_score_correction_bias.clone()
    gate.update_bias(torch.tensor([100, 10, 10, 10, 10, 10, 10, 0]), 0.001)
    change = gate.e_score_correction_bias - before
    assert float(change[0]) < 0 < float(change[7])
    assert float(change.mean()) == pytest.approx(0.0, abs=1e-8)
    # mean load 20: one expert above, seven below; sign minus mean sign (6/8) times the rate
    torch.testing.assert_close(change, 0.001 * torch.tensor([-1.75, *[0.25] * 7]), rtol=1e-4, atol=1e-8)
    even = gate.e_score_correction_bias.clone()
    gate.update_bias(torch.full((8,), 7), 0.001)
    assert torch.equal(gate.e_score_correction_bias, even)


def test_forward_never_moves_the_bias_and_counts_leave_padding_out():
    model = Model(CONFIG).init_weights(1)
    ids = torch.randint(31, (2, 9))
    unused = torch.zeros(2, 9, dtype=torch.bool)
    unused[1, 4:] = True
    layout = Layout.from_positions(torch.arange(9).expand(2, 9), unused)
    _, stats = model.hidden_states(ids, layout)
    assert stats.expert_counts.shape == (2, 8)
    assert stats.expert_counts.sum(1).tolist() == [13 * 2, 13 * 2]
    real = stats.chosen[:, ~unused.flatten()]
    assert torch.equal(stats.expert_counts, torch.stack([c.flatten().bincount(minlength=8) for c in real]))
    assert not any(gate.e_score_correction_bias.any() for gate in model.routers())


def test_balance_loss_of_perfect_balance_is_one_and_of_one_expert_is_larger():
    gate = router()
    torch.nn.init.zeros_(gate.weight)
    x, one_document = torch.randn(8, 16), (torch.zeros(8, dtype=torch.int64), 1, torch.tensor(8))
    even = torch.stack((torch.arange(8), (torch.arange(8) + 1) % 8), dim=1)
    assert balance_loss(gate(x, even), *one_document).item() == pytest.approx(1.0)
    torch.nn.init.normal_(gate.weight)
    skewed = gate(x)
    value = balance_loss(skewed, *one_document)
    share = (skewed.scores / skewed.scores.sum(1, keepdim=True)).mean(0)
    frequency = skewed.chosen.flatten().bincount(minlength=8) * 8 / (2 * 8)
    assert value.item() == pytest.approx((frequency * share).sum().item(), rel=1e-5)
    value.backward()
    assert gate.weight.grad is not None and bool(gate.weight.grad.any())


def test_eval_gives_no_balance_loss():
    model = Model(CONFIG).init_weights(1)
    ids = torch.randint(31, (1, 9))
    assert float(model.hidden_states(ids)[1].balance_loss) > 0
    assert float(model.eval().hidden_states(ids)[1].balance_loss) == 0
