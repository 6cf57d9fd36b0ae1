"""A model of a few thousand parameters, batches for it, and comparisons: what the training tests share."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openk2.config.model import ModelConfig
from openk2.config.run import OptimConfig
from openk2.data.batch import Batch
from openk2.data.packing import pack_documents
from openk2.model.model import Model
from openk2.observe.console import Console
from openk2.optim.muonclip import MuonClip
from openk2.train.batch import supervised
from openk2.train.step import StepResult, train_step

SMALL = ModelConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    moe_intermediate_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    n_routed_experts=4,
    num_experts_per_tok=2,
    kv_lora_rank=12,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=6,
    q_lora_rank=16,
    routed_scaling_factor=2.0,
    max_position_embeddings=64,
    initializer_range=0.1,
)


def build(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Model:
    return Model(dataclasses.replace(SMALL, **changes), compute_dtype=dtype).init_weights(seed)


def make_muonclip(model: Model, **changes: Any) -> MuonClip:
    return MuonClip.from_config(model.parameter_specs(), model.qk_groups(), OptimConfig(**{"lr": 3e-3, **changes}))


def documents(seed: int, lengths: tuple[int, ...] = (30, 7, 20, 39, 12, 20)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(SMALL.vocab_size, size=length) for length in lengths]


def batch(seed: int = 0, row: int = 32) -> Batch:
    """Four rows of packed documents, some cut in two."""
    return pack_documents(documents(seed), row)


def take_step(model: Model, optimizer: MuonClip, given: Batch, micro_rows: int = 4, **changes: float) -> StepResult:
    settings = {"lr": 3e-3, "balance_loss_alpha": 1e-2, "bias_update_rate": 1e-2} | changes
    return train_step(model, optimizer, supervised(given, micro_rows), **settings)


def snapshot(model: Model) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_tensors(left: Any, right: Any) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same_tensors(left[key], right[key]) for key in left)
    return torch.equal(left, right) if isinstance(left, Tensor) else bool(left == right)


def silent_console() -> tuple[Console, io.StringIO]:
    """A console and what is said on it."""
    heard = io.StringIO()
    return Console(stream=heard, results=heard), heard
