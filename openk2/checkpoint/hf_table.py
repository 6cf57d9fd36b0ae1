"""How Hugging Face's `deepseek_v3` tensors lie inside ours: one table for both directions.

Each operation cuts one of our tensors into views and gives each view its
Hugging Face name. Loading copies into the views, saving copies out of them, so
the two directions cannot disagree. Invariant: `weight_table` covers every
entry of the model's state dict exactly once.

The operations: `Rename` (one name for another), `Split` (fused gate and up),
`Stack` (all experts of a layer, each a Split or whole), `Drop` (tensors that
released checkpoints carry and the model computes itself).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from openk2.config.model import ModelConfig

# Older checkpoints hold a table of rotary frequencies per layer, K2's even one of the wrong length.
ROTARY_TABLE = "self_attn.rotary_emb.inv_freq"


@dataclass(frozen=True)
class Rename:
    """The same tensor under another name."""

    ours: str
    theirs: str

    def views(self, tensor: Tensor) -> dict[str, Tensor]:
        return {self.theirs: tensor}


@dataclass(frozen=True)
class Split:
    """Rows of our tensor in equal parts, one name each."""

    ours: str
    theirs: tuple[str, ...]

    def views(self, tensor: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.theirs, tensor.chunk(len(self.theirs)), strict=True))


@dataclass(frozen=True)
class Stack:
    """Our tensor's first dimension taken apart; entry i in equal parts named `theirs[i]`."""

    ours: str
    theirs: tuple[tuple[str, ...], ...]

    def views(self, tensor: Tensor) -> dict[str, Tensor]:
        rows = zip(self.theirs, tensor.unbind(), strict=True)
        return {name: view for names, row in rows for name, view in Split(self.ours, names).views(row).items()}


@dataclass(frozen=True)
class Drop:
    """A tensor of theirs, if present, that has no place in the model."""

    theirs: str


Operation = Rename | Split | Stack | Drop


def weight_table(config: ModelConfig, present: Collection[str] = ()) -> list[Operation]:
    """The whole model's operations, in the order of our state dict.

    `present` are the names found in a checkpoint: a layer whose experts are
    stacked there, as in transformers' memory, is read in that form.
    """
    table: list[Operation] = [Rename("embed_tokens.weight", "model.embed_tokens.weight")]
    for layer in range(config.num_hidden_layers):
        table += _layer_table(config, layer, present)
    return [*table, Rename("norm.weight", "model.norm.weight"), Rename("lm_head.weight", "lm_head.weight")]


def _layer_table(config: ModelConfig, layer: int, present: Collection[str]) -> list[Operation]:
    ours, theirs = f"layers.{layer}.", f"model.layers.{layer}."
    queries = ("q_proj",) if config.q_lora_rank is None else ("q_a_proj", "q_a_layernorm", "q_b_proj")
    attention = (*queries, "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
    names = ("input_layernorm", *(f"self_attn.{name}" for name in attention), "post_attention_layernorm")
    table: list[Operation] = [Rename(f"{ours}{name}.weight", f"{theirs}{name}.weight") for name in names]
    table.append(Drop(theirs + ROTARY_TABLE))
    if layer < config.first_k_dense_replace:
        return [*table, *_mlp_table("mlp.", ours, theirs)]
    table += [
        Rename(f"{ours}mlp.gate.{name}", f"{theirs}mlp.gate.{name}") for name in ("weight", "e_score_correction_bias")
    ]
    table += _expert_table(config, ours, theirs, present)
    if config.n_shared_experts:
        return [*table, *_mlp_table("mlp.shared_experts.", ours, theirs)]
    # Without a shared expert transformers still has one, of width 0.
    return [*table, *(Drop(f"{theirs}mlp.shared_experts.{name}_proj.weight") for name in ("gate", "up", "down"))]


def _mlp_table(mlp: str, ours: str, theirs: str) -> list[Operation]:
    return [
        Split(f"{ours}{mlp}gate_up_proj", tuple(f"{theirs}{mlp}{name}_proj.weight" for name in ("gate", "up"))),
        Rename(f"{ours}{mlp}down_proj", f"{theirs}{mlp}down_proj.weight"),
    ]


def _expert_table(config: ModelConfig, ours: str, theirs: str, present: Collection[str]) -> list[Operation]:
    stacked = f"{theirs}mlp.experts.gate_up_proj" in present
    table: list[Operation] = []
    for tensor, parts in (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",))):
        name = f"mlp.experts.{tensor}"
        if stacked:
            table.append(Rename(ours + name, theirs + name))
        else:
            experts = range(config.n_routed_experts)
            names = tuple(tuple(f"{theirs}mlp.experts.{e}.{part}.weight" for part in parts) for e in experts)
            table.append(Stack(ours + name, names))
    return table
