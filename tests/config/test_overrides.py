"""Overrides: what is accepted, and the one line that each refusal gives."""

from __future__ import annotations

import dataclasses

import pytest

from openk2.config import (
    MODEL_PRESETS,
    ConfigError,
    ModelConfig,
    PretrainConfig,
    RLConfig,
    SpeedrunConfig,
    apply_overrides,
    option_table,
)
from openk2.config.schema import field_specs

TINY = PretrainConfig(MODEL_PRESETS["tiny"])
CHAIN = SpeedrunConfig(TINY)


def refused(config: object, line: str) -> str:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(config, line.split())
    message = str(caught.value)
    assert "\n" not in message and "expected" in message, message
    return message


def test_values_of_every_kind() -> None:
    line = (
        "--train.steps 200 --optim.lr=1e-3 --data.path=/some/text --model.norm_topk_prob false --model.q_lora_rank none"
    )
    config = apply_overrides(TINY, line.split())
    assert config.train == dataclasses.replace(TINY.train, steps=200)
    assert config.optim.lr == 1e-3 and config.data.path == "/some/text"
    assert config.model.norm_topk_prob is False and config.model.q_lora_rank is None
    assert apply_overrides(TINY, ["--data.sources", "sotu,kjv"]).data.sources == ("sotu", "kjv")
    assert PretrainConfig(MODEL_PRESETS["tiny"]) == TINY  # the original is untouched


@pytest.mark.parametrize(("text", "value"), [("1_000", 1000), ("1e3", 1000), ("1.5e3", 1500), ("700", 700)])
def test_integers_may_be_written_for_people(text: str, value: int) -> None:
    steps = apply_overrides(TINY, ["--train.steps", text]).train.steps
    assert steps == value and type(steps) is int


@pytest.mark.parametrize(
    "text", ["1.5", "1e-1", "1e400", "1e9999", "9" * 30, "nan", "inf", "0x10", "2_", "x", "true", "٣"]
)
def test_what_is_no_integer(text: str) -> None:
    message = refused(TINY, f"--train.steps {text}")
    assert "train.steps" in message and text in message and "an integer" in message


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "1e", "none", "1,5"])
def test_what_is_no_number(text: str) -> None:
    assert "a number" in refused(TINY, f"--optim.lr {text}")


def test_options_apply_together_whatever_their_order() -> None:
    options = ["--train.steps=10", "--train.warmup_steps=2", "--train.decay_steps=4"]
    assert apply_overrides(TINY, options) == apply_overrides(TINY, options[::-1])


@pytest.mark.parametrize(
    ("config", "line", "suggestion"),
    [
        (TINY, "--steps 5", "--train.steps"),
        (TINY, "--train.setps 5", "--train.steps"),
        (TINY, "--train.lr 1", "--optim.lr"),
        (TINY, "--optim.learning_rate 1", "--optim.lr"),
        (TINY, "--train.micro-batch-tokens 512", "--train.micro_batch_tokens"),
        (TINY, "-train.steps 5", "--train.steps"),
        (TINY, "train.steps 5", "--train.steps"),
        (TINY, "--model.rope_scaling.facto 8", "--model.rope_scaling.factor"),
        (CHAIN, "--train.steps 5", "--pretrain.train.steps"),
    ],
)
def test_unknown_options_name_the_likely_one(config: object, line: str, suggestion: str) -> None:
    message = refused(config, line)
    assert message.startswith(line.split()[0]) and "did you mean" in message and suggestion in message


def test_an_unknown_option_like_none_lists_its_section() -> None:
    assert "section train (steps, batch_tokens," in refused(TINY, "--train.zzz 5")


def test_abbreviations_are_no_options() -> None:
    refused(TINY, "--train.step 5")
    refused(TINY, "--train.ste 5")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--train.steps 5 --train.steps 5", "twice"),
        ("--train.steps", "no value"),
        ("--train.steps=", "no value"),
        ("--train.steps --train.seed 3", "saw --train.seed next"),
        ("--model.norm_topk_prob", "true or false"),
        ("--model.norm_topk_prob yes", "true or false"),
        ("--train.dtype fp16", "one of auto, bf16, fp32"),
        ("--optim.name adamW", "did you mean adamw?"),
        ("--data.sources sotu,,kjv", "comma-separated"),
        ("--train 5", "saw a section"),
        ("--model.rope_scaling 8", "saw a section"),
        ("--model.rope_scaling none --model.rope_scaling.factor 8", "one or the other"),
    ],
)
def test_refusals(line: str, part: str) -> None:
    message = refused(TINY, line)
    assert part in message and line.split()[0].rstrip("=") in message


@pytest.mark.parametrize(
    ("config", "line", "section"),
    [
        (TINY, "--train.steps 0", "train.steps: saw 0"),
        (TINY, "--copy_fraction 1", "pretrain.copy_fraction: saw 1.0"),
        (CHAIN, "--pretrain.copy_fraction -0.1", "pretrain.copy_fraction: saw -0.1"),
        (CHAIN, "--pretrain.train.steps 0", "pretrain.train.steps: saw 0"),
        (CHAIN, "--rl.group_size 1", "rl.group_size: saw 1"),
        (CHAIN, "--rl.optim.lr 0", "rl.optim.lr: saw 0"),
        (RLConfig(), "--steps 0", "rl.steps: saw 0"),
        (TINY, "--data.code_fraction 1.5", "data.code_fraction: saw 1.5"),
        (TINY, "--model.hidden_size 0", "model.hidden_size: saw 0"),
        (TINY, "--model.rope_scaling.factor 0.5", "model.rope_scaling.factor: saw 0.5"),
    ],
)
def test_what_the_config_itself_refuses_is_named_by_its_full_path(config: object, line: str, section: str) -> None:
    assert refused(config, line).startswith(section)


@pytest.mark.parametrize(
    ("config", "line", "because"),
    [
        (TINY, "--data.path x --data.sources sotu", "data.path is x"),
        (TINY, "--optim.name adamw --optim.qk_clip_tau 50", "optim.name is adamw"),
        (CHAIN, "--pretrain.optim.name adamw --pretrain.optim.momentum 0.9", "pretrain.optim.name is adamw"),
        (RLConfig(), "--critic_weight 0 --critic_pairs 2", "critic_weight is 0.0"),
    ],
)
def test_options_without_effect(config: object, line: str, because: str) -> None:
    message = refused(config, line)
    assert "would change nothing" in message and because in message


def test_options_with_effect_pass_the_same_check() -> None:
    assert apply_overrides(TINY, ["--optim.qk_clip_tau", "50"]).optim.qk_clip_tau == 50.0
    assert apply_overrides(RLConfig(), ["--critic_weight", "0.5", "--critic_pairs", "2"]).critic_pairs == 2


def test_every_needs_names_a_field_beside_it() -> None:
    for config in (TINY, CHAIN):
        sections = [config, *(getattr(config, field.name) for field in dataclasses.fields(config))]
        for section in filter(dataclasses.is_dataclass, sections):
            for spec in field_specs(type(section)).values():
                assert spec.needs is None or spec.needs[0] in field_specs(type(section))


def test_a_field_of_an_absent_section_switches_it_on_with_its_defaults() -> None:
    scaling = apply_overrides(TINY, ["--model.rope_scaling.factor", "8"]).model.rope_scaling
    assert scaling is not None and scaling.factor == 8.0 and scaling.original_max_position_embeddings == 4096
    k2 = PretrainConfig(MODEL_PRESETS["k2_1t"])
    assert apply_overrides(k2, ["--model.rope_scaling", "none"]).model.rope_scaling is None


def test_every_option_of_the_help_can_be_given_back() -> None:
    for config in (TINY, CHAIN, PretrainConfig(MODEL_PRESETS["k2_1t"])):
        absent = {"model.rope_scaling", "pretrain.model.rope_scaling"}
        for option in option_table(config):
            changed = apply_overrides(config, [f"--{option.path}={option.value}"])
            assert changed == config or option.path.rpartition(".")[0] in absent, option


def test_help_takes_the_comment_beside_the_field() -> None:
    table = {option.path: option for option in option_table(TINY)}
    assert table["train.batch_tokens"].help == "per optimizer step"
    assert "counts only where path is none" in table["data.sources"].help
    assert table["train.dtype"].type == "one of auto, bf16, fp32" and table["train.dtype"].value == "auto"
    assert table["train.seed"].help == ""


def test_a_config_cannot_hold_what_no_command_line_can_write() -> None:
    @dataclasses.dataclass(frozen=True)
    class Odd:
        model: ModelConfig | str = "x"

    with pytest.raises(TypeError, match=r"Odd\.model"):
        field_specs(Odd)
