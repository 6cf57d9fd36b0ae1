"""Configs to data and back: nothing lost, nothing guessed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openk2.config import (
    MODEL_PRESETS,
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    SpeedrunConfig,
    TrainConfig,
    YarnConfig,
    digest,
    from_dict,
    to_dict,
)

positive = st.floats(min_value=1e-300, max_value=1e300)
unit = st.floats(min_value=0, max_value=1)
pretraining = st.builds(
    PretrainConfig,
    model=st.builds(
        dataclasses.replace,
        st.sampled_from(list(MODEL_PRESETS.values())),
        q_lora_rank=st.none() | st.integers(1, 4096),
        norm_topk_prob=st.booleans(),
        rope_theta=positive,
        rope_scaling=st.none() | st.builds(YarnConfig, factor=st.floats(1, 1e6)),
    ),
    data=st.builds(
        DataConfig,
        path=st.none() | st.text(min_size=1),
        sources=st.lists(st.text(min_size=1), min_size=1).map(tuple),
        code_fraction=unit,
        seed=st.integers(-(2**63), 2**63),
    ),
    optim=st.builds(
        OptimConfig,
        name=st.sampled_from(["muonclip", "adamw"]),
        lr=positive | st.integers(1, 10),
        qk_clip_tau=st.none() | positive,
    ),
    train=st.builds(TrainConfig, steps=st.integers(100, 10**15), final_lr_ratio=unit),
)


@given(pretraining)
def test_round_trip_through_json(config: PretrainConfig) -> None:
    again = from_dict(PretrainConfig, json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert digest(again) == digest(config)


@given(pretraining, pretraining)
def test_digests_differ_where_configs_do(one: PretrainConfig, other: PretrainConfig) -> None:
    assert (digest(one) == digest(other)) == (one == other)


def test_a_digest_is_the_same_on_every_machine() -> None:
    assert digest(YarnConfig()) == "bb75b87ccc759c04f464f193e80b45ee8631a5598529ebf770cf4c27dab6066f"
    assert digest(OptimConfig(lr=1)) == digest(OptimConfig(lr=1.0))


def tampered(path: str, value: Any) -> dict[str, Any]:
    data = to_dict(SpeedrunConfig(PretrainConfig(MODEL_PRESETS["k2_1t"])))
    *sections, name = path.split(".")
    holder = data
    for section in sections:
        holder = holder[section]
    holder[name] = value
    return data


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("pretrain.train.steps", "200"),
        ("pretrain.train.steps", 200.0),
        ("pretrain.train.steps", True),
        ("pretrain.train.steps", None),
        ("pretrain.train.steps", 0),
        ("pretrain.optim.lr", "fast"),
        ("pretrain.optim.lr", float("nan")),
        ("pretrain.optim.name", "sgd"),
        ("pretrain.model.norm_topk_prob", 1),
        ("pretrain.model.rope_scaling", 32),
        ("pretrain.model.rope_scaling.factor", None),
        ("pretrain.data.sources", "sotu"),
        ("pretrain.data.sources", [1]),
        ("sft", None),
        ("rl.optim.lr", -1.0),
        ("rl.group_size", 1),
    ],
)
def test_a_bad_value_is_refused_by_its_path(path: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(SpeedrunConfig, tampered(path, value))
    message = str(caught.value)
    assert message.startswith(f"{path}: saw") and "expected" in message and "\n" not in message


def test_an_unknown_field_is_refused_with_the_likely_one() -> None:
    with pytest.raises(ConfigError, match=r"^pretrain\.train\.setps: .*did you mean steps\?$"):
        from_dict(SpeedrunConfig, tampered("pretrain.train.setps", 5))


def test_a_missing_field_is_refused() -> None:
    data = to_dict(MODEL_PRESETS["tiny"])
    del data["rope_theta"]
    with pytest.raises(ConfigError, match=r"^rope_theta: saw no value, expected a number$"):
        from_dict(ModelConfig, data)


def test_what_is_no_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match="^ModelConfig: saw list, expected a mapping"):
        from_dict(ModelConfig, [])  # type: ignore[arg-type]
