"""An induction circuit as the first weights, for models that see too little text to grow one.

What it is: heads that copy. Large models form them within their first billions
of tokens: a head that looks one token back, and heads after it that find where
the present token stood before and say what came next (Olsson et al. 2022,
arXiv 2209.11895). A model trained on a few million tokens never gets so far,
and a model that cannot copy cannot put a name from a question into a call. So
its training may begin with the circuit in place, in the manner of mimetic
initialisation (Trockman and Kolter 2023, arXiv 2305.09828). All of it is
weights, and training moves them like any other.

How: three subspaces of the residual stream, K dimensions each, hold a token's
own content, the content of the token before it, and what is being copied. One
more direction is a constant that all embeddings share: latent attention has no
biases, so a rotary score can depend on the distance alone only through it.
Whatever else writes to the stream starts at zero, so that it drowns nothing.
Embeddings and what reads the latents start much wider than other weights: what
is small against an optimizer step is soon something else.

Left out: K2 states no such rule, and its presets start from normal weights alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from openk2.config.model import ModelConfig
from openk2.model.mla import MultiHeadLatentAttention
from openk2.model.model import Block, Model
from openk2.model.moe import MLP
from openk2.model.rope import inverse_frequencies, softmax_scale

LATENT = 15.0  # what reads the latents, in units of `initializer_range`; their norms take the size out again
EMBEDDING = 10.0  # spread of a token's own part, in units of `initializer_range`
# Sizes in units of that spread.
CONSTANT = 4.0  # the part that all embeddings share
BEFORE = 2.0  # what the heads that look back write, together
COPY = 10.0  # what a layer's copying heads write, together
# Scores, as they enter the softmax.
BACK_SCORE = 5.0  # of each rotary pair at a distance of one
BACK_PAIRS = 8  # the fastest pairs: the slow ones cannot tell one token from the next
MATCH_SCORE = 10.0  # of a key whose token before is the query's token
VOTE = 4.0  # the head's weight of what is copied, in units of an embedding as wide as other weights


@torch.no_grad()
def start_with_induction(model: Model, seed: int) -> None:
    """Put the circuit into freshly initialised weights, in place.

    Half of each layer's heads (at least one) look back in the first layer and match in the others; all heads of the
    other layers copy. Raises ValueError for a model of fewer than two layers.
    """
    config = model.config
    if config.num_hidden_layers < 2:
        raise ValueError("induction: saw 1 layer, expected at least 2 (one looks back, the next one matches)")
    generator = torch.Generator().manual_seed(seed)
    hidden, spread = config.hidden_size, EMBEDDING * config.initializer_range
    width = _width(config)
    basis = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator))[0].T
    constant = basis[0]
    token, before, copy = (basis[1 + part * width :][:width] for part in range(3))
    embedding = model.embed_tokens.weight
    embedding *= EMBEDDING
    model.lm_head.weight += (VOTE / EMBEDDING * (embedding.float() @ token.T) @ copy).to(embedding)
    embedding += (CONSTANT * spread * math.sqrt(hidden) * constant).to(embedding)
    for layer, block in enumerate(model.blocks()):
        _silence(block)
        attention = _Attention(block.self_attn, config, constant)
        attention.read_latent(token, before if layer else None)
        if layer:
            attention.match(width)
            attention.write(copy, width, heads=config.num_attention_heads, size=COPY * spread)
        else:
            attention.look_back()
            attention.write(before, width, heads=attention.num_special, size=BEFORE * spread)


def _width(config: ModelConfig) -> int:
    """Dimensions of a token's content that the circuit carries."""
    limits = [config.kv_lora_rank // 2, config.qk_nope_head_dim, config.v_head_dim, (config.hidden_size - 1) // 3]
    if config.q_lora_rank is not None:
        limits.append(config.q_lora_rank - 1)
    return min(limits)


def _silence(block: Block) -> None:
    block.self_attn.o_proj.weight.zero_()
    if isinstance(block.mlp, MLP):
        block.mlp.down_proj.zero_()
        return
    block.mlp.experts.down_proj.zero_()
    if block.mlp.shared_experts is not None:
        block.mlp.shared_experts.down_proj.zero_()


class _Attention:
    """One attention's weights by head, for layers whose input is a token's own part and the constant."""

    def __init__(self, attention: MultiHeadLatentAttention, config: ModelConfig, constant: Tensor) -> None:
        heads = config.num_attention_heads
        self.config = config
        self.constant = constant
        self.num_special = max(heads // 2, 1)
        self.scale = softmax_scale(config)
        self.attention = attention
        self.key_value = attention.kv_b_proj.weight.view(heads, -1, config.kv_lora_rank)
        self.query = attention.query_weight.view(heads, config.qk_head_dim, -1)
        self.out = attention.o_proj.weight.view(config.hidden_size, heads, config.v_head_dim)
        # Of a normalised embedding: the spread of the token's part, and the length of the constant.
        self.token_spread = 1 / math.sqrt(1 + CONSTANT**2)
        self.constant_length = math.sqrt(config.hidden_size * (1 - self.token_spread**2))

    def read_latent(self, token: Tensor, before: Tensor | None) -> None:
        """The first rows of the latents hold the token, the next ones (where given) the token before it."""
        width, size = len(token), self.config.initializer_range * math.sqrt(self.config.hidden_size)
        self._forget_constant(down := self.attention.kv_a_proj_with_mqa.weight)
        down[:width] = (size * token).to(down)
        if before is not None:
            down[width : 2 * width] = (size * before).to(down)
        down[: self.config.kv_lora_rank] *= LATENT
        if self.config.q_lora_rank is None:
            self._forget_constant(self.attention.q_proj.weight)
            self.query_token = token / self.token_spread
            self.query_constant = self.constant / self.constant_length
            return
        self._forget_constant(down := self.attention.q_a_proj.weight)
        down[:width] = (size * token).to(down)
        # As large in the latent as a token's dimension.
        down[width] = (size * self.token_spread / self.constant_length * self.constant).to(down)
        down *= LATENT
        rows = torch.eye(self.config.q_lora_rank)
        self.query_token, self.query_constant = rows[:width], rows[width]

    def look_back(self) -> None:
        """Special heads attend one token back: each pair's score is BACK_SCORE * cos(angle * (distance - 1))."""
        config, size = self.config, math.sqrt(BACK_SCORE / self.scale)
        pairs = min(BACK_PAIRS, config.qk_rope_head_dim // 2)
        angles = inverse_frequencies(config)[:pairs]
        key = self.attention.kv_a_proj_with_mqa.weight[config.kv_lora_rank :][0 : 2 * pairs : 2]
        key += (size / self.constant_length * self.constant).to(key)
        for head in range(self.num_special):
            self.query[head] = 0
            rope = self.query[head, config.qk_nope_head_dim :]
            rope[0 : 2 * pairs : 2] = (size * torch.outer(angles.cos(), self.query_constant)).to(rope)
            rope[1 : 2 * pairs : 2] = (-size * torch.outer(angles.sin(), self.query_constant)).to(rope)

    def match(self, width: int) -> None:
        """Special heads look for keys whose token before is the query's token."""
        size = math.sqrt(MATCH_SCORE / self.scale / width)
        for head in range(self.num_special):
            self.query[head, :width] = (size * self.query_token).to(self.query)
            self.key_value[head, :width] = 0
            self.key_value[head, :width, width : 2 * width] = size * torch.eye(width)

    def write(self, subspace: Tensor, width: int, heads: int, size: float) -> None:
        """The first `heads` heads write the token's content that they see to a subspace."""
        nope = self.config.qk_nope_head_dim
        for head in range(heads):
            self.key_value[head, nope : nope + width] = 0
            self.key_value[head, nope : nope + width, :width] = torch.eye(width)
            self.out[:, head, :width] = (size / heads * subspace.T).to(self.out)

    def _forget_constant(self, weight: Tensor) -> None:
        """Rows no longer see the constant, which would drown everything else in a normalised latent."""
        weight -= torch.outer(weight.float() @ self.constant, self.constant).to(weight)
