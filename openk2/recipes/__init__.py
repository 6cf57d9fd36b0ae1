"""Runs by name: functions that return a frozen config and do nothing else.

`tiny` and `small` are for the computer at hand; `moonlight_16b_a3b` and
`k2_1t` write down what was published about those runs. What was not published
(K2's momentum, balance rates, gradient clip, data) keeps our default and is
said so beside the recipe. Left out: hardware layouts, which the planner and
the parallel engine decide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from openk2.config import (
    MODEL_PRESETS,
    ConfigError,
    DataConfig,
    EvaluateConfig,
    OptimConfig,
    PretrainConfig,
    RLConfig,
    SFTConfig,
    SpeedrunConfig,
    SynthConfig,
    TrainConfig,
)
from openk2.config.overrides import nearest_name

__all__ = [
    "RECIPES",
    "k2_1t_pretrain",
    "moonlight_16b_a3b_pretrain",
    "pretrain_recipe",
    "small_pretrain",
    "smoke",
    "speedrun",
    "tiny_pretrain",
]


def tiny_pretrain() -> PretrainConfig:
    """The speedrun's pre-training: 0.8M tokens, minutes on two cores.

    The bias rate is ten times Moonlight's, which is meant for a hundred thousand steps and not for hundreds. AdamW's
    epsilon is large, so that rows of the output head that are never a target keep still: with 1e-8 their tiny gradients
    are normalised to full steps, all in one direction, and tokens that training never emits can never be emitted.
    """
    return PretrainConfig(
        model=MODEL_PRESETS["tiny"],
        induction=True,
        copy_fraction=0.125,
        data=DataConfig(max_bytes=6_000_000, code_fraction=0.65),
        optim=OptimConfig(lr=6e-3, adam_eps=1e-5),
        train=TrainConfig(
            steps=200,
            batch_tokens=4_096,
            micro_batch_tokens=4_096,
            warmup_steps=20,
            decay_steps=80,
            bias_update_rate=1e-2,
            checkpoint_every=50,
            eval_every=100,
        ),
    )


def small_pretrain() -> PretrainConfig:
    """117M parameters and 262M tokens: for a CPU with days to spare (no GPU has been tried)."""
    return PretrainConfig(
        model=MODEL_PRESETS["small"],
        data=DataConfig(max_bytes=200_000_000),
        optim=OptimConfig(lr=1.5e-3),
        train=TrainConfig(
            steps=4_000,
            batch_tokens=65_536,
            micro_batch_tokens=16_384,
            sequence_length=2_048,
            warmup_steps=100,
            decay_steps=1_000,
            checkpoint_every=250,
            eval_every=250,
        ),
    )


def moonlight_16b_a3b_pretrain() -> PretrainConfig:
    """Moonlight's long second stage (report 2502.16982, section 3.3): warm-up, then one cosine to 5.2T tokens.

    4.2e-4 after 2,000 steps, down to 4.2e-5, 4,096 sequences of 8,192 tokens. Not said here: the batch was half
    that size up to 200B tokens, and a last 0.5T tokens at 1e-4 to 0 followed.
    """
    batch_tokens = 4_096 * 8_192
    steps = round(5.2e12 / batch_tokens)
    return PretrainConfig(
        model=MODEL_PRESETS["moonlight_16b_a3b"],
        data=_own_corpus(tokens=5.2e12),
        optim=OptimConfig(lr=4.2e-4, qk_clip_tau=None),  # QK-Clip came with K2
        train=TrainConfig(
            steps=steps,
            batch_tokens=batch_tokens,
            micro_batch_tokens=8_192,
            sequence_length=8_192,
            warmup_steps=2_000,
            decay_steps=steps - 2_000,
            final_lr_ratio=0.1,
            dtype="bf16",
            checkpoint_every=1_000,
            eval_every=1_000,
        ),
    )


def k2_1t_pretrain() -> PretrainConfig:
    """K2's stable and decay stages (report 2507.20534, section 2.5): 15.5T tokens, 4,096 context.

    2e-4 after 500 steps, constant to 10T tokens, cosine to 2e-5 over the last 5.5T, weight decay 0.1, 67M tokens
    a batch (16,384 sequences), QK-Clip at 100. Undisclosed, so our defaults: momentum, Newton-Schulz steps,
    balance rates, gradient clip. The 4k/32k annealing and the 128k extension are stages of their own.
    """
    batch_tokens = 16_384 * 4_096
    model = dataclasses.replace(MODEL_PRESETS["k2_1t"], max_position_embeddings=4_096, rope_scaling=None)
    return PretrainConfig(
        model=model,
        data=_own_corpus(tokens=15.5e12),
        optim=OptimConfig(lr=2e-4, weight_decay=0.1, qk_clip_tau=100.0),
        train=TrainConfig(
            steps=round(15.5e12 / batch_tokens),
            batch_tokens=batch_tokens,
            micro_batch_tokens=4_096,
            sequence_length=4_096,
            warmup_steps=500,
            decay_steps=round(5.5e12 / batch_tokens),
            final_lr_ratio=0.1,
            dtype="bf16",
            recompute="selective",
            checkpoint_every=1_000,
            eval_every=1_000,
        ),
    )


def _own_corpus(tokens: float) -> DataConfig:
    """A folder that only the reader can fill, with 5 bytes a token as the most that K2's vocabulary averages."""
    return DataConfig(path="corpus", max_bytes=int(5 * tokens), val_bytes=16_777_216)


def speedrun() -> SpeedrunConfig:
    """The whole recipe, meant for 20 minutes on two cores; the report says how long a run took."""
    return SpeedrunConfig(
        pretrain=tiny_pretrain(),
        synth=SynthConfig(attempts=6_000),
        sft=SFTConfig(
            optim=OptimConfig(lr=2.5e-3, adam_eps=1e-5),
            train=TrainConfig(
                steps=800,
                batch_tokens=4_096,
                micro_batch_tokens=4_096,
                sequence_length=1_024,
                warmup_steps=10,
                decay_steps=560,
                final_lr_ratio=0.03,
                checkpoint_every=100,
                eval_every=60,
            ),
        ),
        rl=RLConfig(
            steps=6,
            pool_tasks=96,
            token_budget=128,
            critic_pairs=2,
            checkpoint_every=4,
            optim=OptimConfig(lr=4e-4),
        ),
    )


def smoke() -> SpeedrunConfig:
    """The speedrun's chain with a smaller model and stages of under a minute: what the tests run."""
    model = dataclasses.replace(
        MODEL_PRESETS["tiny"],
        vocab_size=2_048,
        hidden_size=128,
        intermediate_size=384,
        moe_intermediate_size=64,
        num_hidden_layers=3,
        n_routed_experts=8,
        num_experts_per_tok=2,
    )
    short = TrainConfig(
        steps=24,
        batch_tokens=4_096,
        micro_batch_tokens=4_096,
        sequence_length=512,
        warmup_steps=4,
        decay_steps=8,
        checkpoint_every=8,
        eval_every=12,
    )
    return SpeedrunConfig(
        pretrain=PretrainConfig(
            model=model,
            induction=True,
            copy_fraction=0.125,
            data=DataConfig(max_bytes=1_000_000, val_bytes=16_384),
            train=short,
        ),
        synth=SynthConfig(attempts=120),
        sft=SFTConfig(train=short),
        rl=RLConfig(steps=2, prompts_per_step=2, group_size=4, pool_tasks=16, token_budget=48, checkpoint_every=1),
        evaluate=EvaluateConfig(tool_tasks=12, set_tasks=12, max_new_tokens=32, samples=2),
    )


RECIPES: dict[str, Callable[[], PretrainConfig] | Callable[[], SpeedrunConfig]] = {
    "tiny_pretrain": tiny_pretrain,
    "small_pretrain": small_pretrain,
    "moonlight_16b_a3b_pretrain": moonlight_16b_a3b_pretrain,
    "k2_1t_pretrain": k2_1t_pretrain,
    "speedrun": speedrun,
    "smoke": smoke,
}


def pretrain_recipe(name: str) -> PretrainConfig:
    """The pre-training of the model preset `name`. Raises `ConfigError` for a name that is none."""
    recipe = RECIPES.get(f"{name}_pretrain")
    config = recipe() if recipe else None
    if not isinstance(config, PretrainConfig):
        known = list(MODEL_PRESETS)
        raise ConfigError(f"recipe: saw {name!r}, expected one of {', '.join(known)}{nearest_name(name, known)}")
    return config
