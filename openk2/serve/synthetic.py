"""A model of random weights with a tokenizer, for whoever builds a client and has no checkpoint.

What it says is noise; that its tool calls obey their schemas, its streams end
and its errors are those of any other model is what it is for.
"""

from __future__ import annotations

from pydoc_data.topics import topics

import torch

from openk2.chat.codec import Codec
from openk2.chat.tokenizer import Tokenizer
from openk2.config import MODEL_PRESETS
from openk2.model.model import Model
from openk2.plan.parameters import plan_parameters

MOST = 2_000_000_000  # parameters


def synthetic_model(preset: str, seed: int = 0) -> tuple[Model, Codec]:
    """Random weights in bf16 of a preset's shape, and a tokenizer of its size, trained on the
    texts that Python's own help brings.

    Raises `ValueError` for a name that is none, or a shape beyond what this is for.
    """
    config = MODEL_PRESETS.get(preset)
    if config is None:
        raise ValueError(f"--synthetic: saw {preset!r}, expected one of {', '.join(MODEL_PRESETS)}")
    total = plan_parameters(config).total
    if total > MOST:
        raise ValueError(f"--synthetic: saw {preset} ({total:,} parameters), expected at most {MOST:,}; take tiny")
    tokenizer = Tokenizer.train(topics.values(), config.vocab_size)
    model = Model(config, compute_dtype=torch.bfloat16).init_weights(seed)
    return model, Codec(tokenizer)
