"""A checkpoint small enough to train in a second: model, codec, and the folder that commands take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openk2.chat.codec import Codec
from openk2.chat.tokenizer import Tokenizer
from openk2.checkpoint.variant import export_variant
from openk2.config import ModelConfig
from openk2.environments import declarations
from openk2.model.model import Model

VOCAB = 640


def small_model(seed: int = 0) -> Model:
    config = ModelConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        max_position_embeddings=1024,
    )
    return Model(config).init_weights(seed)


def small_codec() -> Codec:
    text = json.dumps(declarations(("calculator", "weekday"))) + " What is 37 times 48? It is 1776. You use tools."
    return Codec(Tokenizer.train([text] * 4, VOCAB))


def write_checkpoint(folder: Path, *, kind: str = "instruct") -> Path:
    return export_variant(small_model(), small_codec(), folder, kind=kind, made_by="a test")


def tool_line(result_id: str = "functions.calculator:0", arguments: str = '{"expression": "6*7"}') -> dict[str, Any]:
    """A dialogue in OpenAI's format with one call."""
    call = {"id": "functions.calculator:0", "type": "function", "function": {"name": "calculator"}}
    call["function"]["arguments"] = arguments  # type: ignore[index]
    return {
        "messages": [
            {"role": "user", "content": "What is 6 times 7?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": result_id, "content": "42"},
            {"role": "assistant", "content": "It is 42."},
        ],
        "tools": declarations(("calculator",)),
    }


def talk_line(question: str = "Say hello.", answer: str = "Hello!") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_lines(path: Path, *lines: Any) -> Path:
    """JSONL; a line that is a string is written as it is."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path
