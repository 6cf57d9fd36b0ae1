"""The induction circuit that short runs start from: it looks back, matches and copies before any training."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from openk2.config.model import ModelConfig, YarnConfig
from openk2.config.presets import MODEL_PRESETS
from openk2.model.induction import start_with_induction
from openk2.model.model import Model
from openk2.recipes import k2_1t_pretrain, tiny_pretrain

CONFIG = dataclasses.replace(
    MODEL_PRESETS["tiny"],
    vocab_size=512,
    hidden_size=128,
    num_hidden_layers=3,
    n_routed_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    intermediate_size=128,
)
YARN = YarnConfig(factor=4.0, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=1.0)
CONFIGS = {
    "tiny": CONFIG,
    "queries without a bottleneck": dataclasses.replace(CONFIG, q_lora_rank=None),
    "two layers": dataclasses.replace(CONFIG, num_hidden_layers=2),
    "one special head of three": dataclasses.replace(CONFIG, num_attention_heads=3),
    "yarn": dataclasses.replace(CONFIG, rope_scaling=YARN),
}
LENGTH = 40


def started(config: ModelConfig, seed: int = 0) -> Model:
    model = Model(config).init_weights(seed)
    start_with_induction(model, seed)
    return model.eval()


def losses(model: Model) -> tuple[float, float]:
    """Mean loss on random tokens and on the same tokens said again."""
    ids = torch.randint(model.config.vocab_size, (4, LENGTH), generator=torch.Generator().manual_seed(5)).repeat(1, 2)
    with torch.no_grad():
        log_probs = model(ids[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return -float(log_probs[:, : LENGTH - 1].mean()), -float(log_probs[:, LENGTH:].mean())


@pytest.mark.parametrize("name", list(CONFIGS))
def test_what_was_said_before_is_predicted_before_any_training(name: str) -> None:
    plain = losses(Model(CONFIGS[name]).init_weights(0).eval())
    assert plain[1] > plain[0] - 0.1
    first, second = losses(started(CONFIGS[name]))
    assert second < first - 4.5
    assert first < plain[0] + 1.5  # what is copied although it does not come again


@pytest.mark.parametrize("part", ["embed_tokens", "layers.0.self_attn", "layers.1.self_attn", "lm_head"])
def test_every_part_of_the_circuit_is_needed(part: str) -> None:
    """With two layers nothing stands in for a part that is random again."""
    config = CONFIGS["two layers"]
    model, random = started(config), dict(Model(config).init_weights(1).named_parameters())
    whole = losses(model)[1]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(part):
                parameter.copy_(random[name])
    assert losses(model)[1] > whole + 1.0


def test_nothing_but_the_circuit_writes_to_the_stream_at_first() -> None:
    model = started(CONFIG)
    for name, parameter in model.named_parameters():
        if "down_proj" in name:
            assert not parameter.any(), name
    before, copy = (model.layers[layer].self_attn.o_proj.weight.detach().double() for layer in (0, 1))
    width = (CONFIG.hidden_size - 1) // 3
    assert torch.linalg.matrix_rank(before) == torch.linalg.matrix_rank(copy) == width
    assert torch.linalg.matrix_rank(torch.cat((before, copy), dim=1)) == 2 * width


def test_what_reads_the_latents_is_wide_against_an_optimizers_step() -> None:
    for block in started(CONFIG).blocks():
        attention = block.self_attn
        for weight in (attention.kv_a_proj_with_mqa.weight[: CONFIG.kv_lora_rank], attention.q_a_proj.weight):
            assert float(weight.detach().square().mean().sqrt()) > 10 * CONFIG.initializer_range


def test_special_heads_of_the_first_layer_look_one_token_back() -> None:
    model = started(CONFIG)
    ids = torch.randint(CONFIG.vocab_size, (200,), generator=torch.Generator().manual_seed(1))
    block = next(model.blocks())
    turns = model.rotary(torch.arange(200)[None])
    with torch.no_grad():
        x = block.input_layernorm(model.embed_tokens(ids))
        query = block.self_attn._queries(block.self_attn._query_latent(x), turns)[0, ..., CONFIG.qk_nope_head_dim :]
        _, key = block.self_attn.latents(x, turns)
        scores = torch.einsum("hid,jd->hij", query, key).masked_fill(torch.ones(200, 200).triu(1).bool(), -torch.inf)
    for head in range(CONFIG.num_attention_heads // 2):
        assert torch.equal(scores[head, 1:].argmax(-1), torch.arange(199))


def test_the_start_depends_on_the_seed_alone() -> None:
    first, second, other = (started(CONFIG, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_one_layer_is_too_few() -> None:
    with pytest.raises(ValueError, match="saw 1 layer, expected at least 2"):
        started(dataclasses.replace(CONFIG, num_hidden_layers=1))


def test_only_short_runs_start_so() -> None:
    assert tiny_pretrain().induction and not k2_1t_pretrain().induction
