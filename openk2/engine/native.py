"""Decoding steps of a few sequences through `ops/decode.cpp`, for a model on the CPU in bf16.

Invariant: the structures below are those of the C++ file, field by field, and
point into the model's and the store's own memory, so that new weights copied in
place are seen. Left out: 8-bit caches, groups of experts, batch-invariant
arithmetic, pieces of several tokens; the torch path has them.
"""

from __future__ import annotations

import ctypes
from collections import abc

import torch
from torch import Tensor

from openk2.engine.block_pool import BLOCK
from openk2.engine.latent_store import LatentStore, PlainStore
from openk2.engine.scheduler import Piece
from openk2.model.mla import INNER_NORM_EPS
from openk2.model.model import Block, Model
from openk2.model.moe import MLP
from openk2.model.rope import rotary_turns
from openk2.ops.cpp import shared_object

# Beyond so many rows matrix products are faster than dot products: for 1B parameters between 128 and 256 (log/LOG.md).
MAX_ROWS = 128
_Pointer, _Int, _Float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Pointer) for name in "input_norm q_a q_a_norm q_b kv_a kv_a_norm kv_b o post_norm".split()),
        *((name, _Pointer) for name in "router router_bias experts_gate_up experts_down gate_up down cache".split()),
        ("width", _Int),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, _Int) for name in "layers hidden heads nope rope value latent q_rank experts chosen".split()),
        *((name, _Int) for name in "expert_width vocabulary block normalise_weights".split()),
        *((name, _Float) for name in "eps inner_eps scale routed_scale".split()),
        *((name, _Pointer) for name in "embedding norm head turns layer".split()),
    ]


class NativeDecoder:
    """`decode` for one model and store."""

    def __init__(self, model: Model, store: PlainStore) -> None:
        config = model.config
        self._model, self._shared_object = model, shared_object()
        self._turns = torch.view_as_real(rotary_turns(config, config.max_position_embeddings)).contiguous()
        self._layers = (_Layer * config.num_hidden_layers)(
            *(_layer(block, store.values[index]) for index, block in enumerate(model.blocks()))
        )
        self._struct = _Model(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            nope=config.qk_nope_head_dim,
            rope=config.qk_rope_head_dim,
            value=config.v_head_dim,
            latent=config.kv_lora_rank,
            q_rank=config.q_lora_rank or 0,
            experts=config.n_routed_experts,
            chosen=config.num_experts_per_tok,
            expert_width=config.moe_intermediate_size,
            vocabulary=config.vocab_size,
            block=BLOCK,
            normalise_weights=config.norm_topk_prob,
            eps=config.rms_norm_eps,
            inner_eps=INNER_NORM_EPS,
            scale=next(model.blocks()).self_attn.scale,
            routed_scale=config.routed_scaling_factor,
            embedding=model.embed_tokens.weight.data_ptr(),
            norm=model.norm.weight.data_ptr(),
            head=model.lm_head.weight.data_ptr(),
            turns=self._turns.data_ptr(),
            layer=ctypes.cast(self._layers, _Pointer),
        )

    @classmethod
    def make(cls, model: Model, store: LatentStore, *, wait: bool) -> NativeDecoder | None:
        """None where the C++ does not know the model, the store or the arithmetic, or cannot be compiled."""
        known = model.compute_dtype == torch.bfloat16 and model.attention == "auto" and model.config.n_group == 1
        if not (known and isinstance(store, PlainStore) and model.lm_head.weight.device.type == "cpu"):
            return None
        if wait and shared_object().get(wait=True) is None:
            return None
        return cls(model, store)

    def can(self, pieces: abc.Sequence[Piece]) -> bool:
        few = len(pieces) <= MAX_ROWS and all(piece.last - piece.first == 1 and piece.predicts for piece in pieces)
        return few and self._shared_object.get() is not None

    def decode(self, pieces: abc.Sequence[Piece]) -> tuple[Tensor, Tensor]:
        """Single tokens of some sequences: logits [B, V] and chosen experts [L_moe, B, K]."""
        config, count = self._model.config, len(pieces)
        tokens = torch.tensor([piece.sequence.tokens[piece.first] for piece in pieces])
        positions = torch.tensor([piece.first for piece in pieces])
        most = max(len(piece.sequence.blocks) for piece in pieces)
        blocks = torch.tensor([[*p.sequence.blocks, *([0] * (most - len(p.sequence.blocks)))] for p in pieces])
        logits = torch.empty(count, config.vocab_size, dtype=torch.bfloat16)
        chosen = torch.empty(config.num_moe_layers, count, config.num_experts_per_tok, dtype=torch.int64)
        loaded = self._shared_object.get()
        assert loaded is not None
        loaded.openk2_decode(
            ctypes.byref(self._struct),
            _Int(torch.get_num_threads()),
            _Int(count),
            *(_Pointer(tensor.data_ptr()) for tensor in (tokens, positions, blocks)),
            _Int(most),
            *(_Pointer(tensor.data_ptr()) for tensor in (logits, chosen)),
        )
        return logits, chosen


def _layer(block: Block, cache: Tensor) -> _Layer:
    attention, mlp = block.self_attn, block.mlp
    tensors: dict[str, Tensor] = {
        "input_norm": block.input_layernorm.weight,
        "q_b": attention.query_weight,
        "kv_a": attention.kv_a_proj_with_mqa.weight,
        "kv_a_norm": attention.kv_a_layernorm.weight,
        "kv_b": attention.kv_b_proj.weight,
        "o": attention.o_proj.weight,
        "post_norm": block.post_attention_layernorm.weight,
        "cache": cache,
    }
    if attention.config.q_lora_rank is not None:
        tensors |= {"q_a": attention.q_a_proj.weight, "q_a_norm": attention.q_a_layernorm.weight}
    dense = mlp if isinstance(mlp, MLP) else mlp.shared_experts
    if not isinstance(mlp, MLP):
        tensors |= {
            "router": mlp.gate.weight,
            "router_bias": mlp.gate.e_score_correction_bias,
            "experts_gate_up": mlp.experts.gate_up_proj,
            "experts_down": mlp.experts.down_proj,
        }
    if dense is not None:
        tensors |= {"gate_up": dense.gate_up_proj, "down": dense.down_proj}
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    width = 0 if dense is None else dense.down_proj.shape[1]
    return _Layer(width=width, **{name: tensor.data_ptr() for name, tensor in tensors.items()})
