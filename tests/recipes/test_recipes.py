"""Recipes are values: they build, they survive a file, and they say what was published."""

from __future__ import annotations

import pytest

from openk2.config import MODEL_PRESETS, ConfigError, apply_overrides, from_dict, to_dict
from openk2.recipes import RECIPES, k2_1t_pretrain, pretrain_recipe, small_pretrain, smoke, speedrun, tiny_pretrain


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_same_value_each_time_and_after_a_file(name: str) -> None:
    config = RECIPES[name]()
    assert config == RECIPES[name]()
    assert from_dict(type(config), to_dict(config)) == config
    assert apply_overrides(config, []) == config


@pytest.mark.parametrize("name", MODEL_PRESETS)
def test_every_preset_has_a_pretraining(name: str) -> None:
    config = pretrain_recipe(name)
    assert config.model.hidden_size == MODEL_PRESETS[name].hidden_size
    assert config.train.sequence_length <= config.model.max_position_embeddings


@pytest.mark.parametrize("name", ["tinny", "k2", "speedrun", ""])
def test_an_unknown_preset_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected one of tiny, small, moonlight_16b_a3b, k2_1t"):
        pretrain_recipe(name)
    with pytest.raises(ConfigError, match=r"did you mean tiny\?"):
        pretrain_recipe("tinny")


def test_k2_says_what_its_report_says() -> None:
    config = k2_1t_pretrain()
    train, tokens = config.train, config.train.batch_tokens
    assert tokens == 67_108_864 and train.sequence_length == 4096 and train.warmup_steps == 500
    assert train.steps * tokens == pytest.approx(15.5e12, rel=1e-5)
    assert train.decay_steps * tokens == pytest.approx(5.5e12, rel=1e-5)
    assert config.optim.lr == 2e-4 and config.optim.lr * train.final_lr_ratio == pytest.approx(2e-5)
    assert config.optim.weight_decay == 0.1 and config.optim.qk_clip_tau == 100.0


def test_the_speedrun_starts_with_tiny_and_the_smoke_run_is_its_short_twin() -> None:
    assert speedrun().pretrain == tiny_pretrain()
    short, full = smoke(), speedrun()
    assert type(short) is type(full)
    for stage in ("pretrain", "sft"):
        one, other = getattr(short, stage).train, getattr(full, stage).train
        assert one.steps * one.batch_tokens < other.steps * other.batch_tokens / 5
    assert short.rl.steps < full.rl.steps


def test_small_has_about_a_hundred_million_parameters() -> None:
    from openk2.plan import plan_parameters

    assert 0.8e8 < plan_parameters(small_pretrain().model).total < 1.2e8
