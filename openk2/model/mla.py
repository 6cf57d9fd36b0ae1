"""Multi-head latent attention.

Queries pass through a low-rank bottleneck; keys and values are unfolded from
one latent per token plus one rotary key that all heads share. Training and
prefill unfold the latent and attend over whole heads; decoding folds the
unfolding into query and output instead and attends over the latents alone,
so the cache holds kv_lora_rank + rope values a token. Source: DeepSeek-V2
(arXiv 2405.04434), section 2.1; DeepSeek-V3 (arXiv 2412.19437), section 2.1.1.

Shapes: N tokens (B x T), D model, H heads, n nope, r rope, v value, C latent.
Left out: attention biases, which no K2 checkpoint has.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openk2.config.model import ModelConfig
from openk2.model.context import ForwardContext
from openk2.model.norm import RMSNorm
from openk2.model.rope import softmax_scale
from openk2.ops.attention import exact_peaks
from openk2.ops.recompute import KEEP, Recompute
from openk2.ops.rope import key_value_heads, query_heads, rotate

# The two norms inside attention use this epsilon whatever the config says, as in the released code.
INNER_NORM_EPS = 1e-6


class Scores(NamedTuple):
    """The largest softmax input of each head and a number it does not exceed, fp32 [H]; the same where it is exact."""

    max_scores: Tensor
    bounds: Tensor


class MultiHeadLatentAttention(nn.Module):
    """x [N, D] -> [N, D]; parameters carry the names of Hugging Face's `self_attn`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        heads, hidden = config.num_attention_heads, config.hidden_size
        self.scale = softmax_scale(config)
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, heads * config.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, INNER_NORM_EPS)
            self.q_b_proj = nn.Linear(config.q_lora_rank, heads * config.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, config.latent_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, INNER_NORM_EPS)
        self.kv_b_proj = nn.Linear(
            config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim), bias=False
        )
        self.o_proj = nn.Linear(heads * config.v_head_dim, hidden, bias=False)

    @property
    def query_weight(self) -> Tensor:
        """The projection whose rows are the heads' queries."""
        return self.q_proj.weight if self.config.q_lora_rank is None else self.q_b_proj.weight

    def _query_latent(self, x: Tensor, again: Recompute = KEEP) -> Tensor:
        """x [N, D] -> what the queries are projected from: the normalised query latent, or x itself without one."""
        if self.config.q_lora_rank is None:
            return x
        return cast(Tensor, again(self.q_a_layernorm, F.linear(x, self.q_a_proj.weight.to(x.dtype))))

    def _queries(self, latent: Tensor, turns: Tensor) -> Tensor:
        """The latent of `_query_latent`, turns [B, T, r/2] -> rotated queries [B, H, T, n + r]."""
        flat = F.linear(latent, self.query_weight.to(latent.dtype)).view(*turns.shape[:2], -1)
        return query_heads(flat, turns, heads=self.config.num_attention_heads, nope=self.config.qk_nope_head_dim)

    def queries(self, x: Tensor, turns: Tensor) -> Tensor:
        """x [N, D], turns [B, T, r/2] -> rotated queries [B, H, T, n + r]."""
        return self._queries(self._query_latent(x), turns)

    def latents(self, x: Tensor, turns: Tensor, again: Recompute = KEEP) -> tuple[Tensor, Tensor]:
        """x [N, D], turns [B, T, r/2] -> normalised latent [N, C], rotated shared key [N, r]: what the cache holds."""
        joint = F.linear(x, self.kv_a_proj_with_mqa.weight.to(x.dtype))
        latent, rope = joint.split((self.config.kv_lora_rank, self.config.qk_rope_head_dim), dim=-1)
        return again(self.kv_a_layernorm, latent.contiguous()), rotate(rope, turns.flatten(0, 1))

    def keys_values(self, latent: Tensor, rope: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """latent [N, C], rope [N, r] -> keys [B, H, T, n + r] and values [B, H, T, v]."""
        unfolded = F.linear(latent, self.kv_b_proj.weight.to(latent.dtype)).unflatten(0, (batch, -1))
        heads, nope = self.config.num_attention_heads, self.config.qk_nope_head_dim
        return key_value_heads(unfolded, rope.unflatten(0, (batch, -1)), heads=heads, nope=nope)

    def forward(self, x: Tensor, context: ForwardContext) -> tuple[Tensor, Scores, Tensor]:
        """Attend within documents: x [N, D] -> output [N, D], largest scores, and what a cache keeps [N, C + r]."""
        again, batch = context.again, len(context.turns)
        q = again(self._queries, self._query_latent(x, again), context.turns)
        latent, rope = self.latents(x, context.turns, again)
        k, v = again(self.keys_values, latent, rope, batch)
        out, peaks = context.attention.attend(q, k, v, context.prepared, self.scale)
        scores = self._max_scores(peaks, q.detach(), k.detach(), context)
        return self.output(out.transpose(1, 2).reshape(len(x), -1)), scores, torch.cat((latent, rope), dim=-1)

    def output(self, attended: Tensor) -> Tensor:
        """The heads' values side by side, [N, H * v] -> [N, D]."""
        return F.linear(attended, self.o_proj.weight.to(attended.dtype))

    def _max_scores(self, peaks: Tensor, q: Tensor, k: Tensor, context: ForwardContext) -> Scores:
        """By head, from each query's peak [B, H, T]; exact ones where the bound of a head exceeds tau."""
        padding = (context.layout.documents < 0).unsqueeze(1)
        max_scores = peaks.masked_fill(padding, -torch.inf).amax((0, 2))
        bounds = context.attention.bound(max_scores, q.dtype)
        if context.tau is not None and bool(bounds.max() > context.tau):
            exact = exact_peaks(q, k, context.tiling, self.scale)
            max_scores = bounds = exact.masked_fill(padding, -torch.inf).amax((0, 2))
        return Scores(max_scores, bounds)

    def absorbed(self, q: Tensor, cache: Tensor, positions: Tensor) -> Tensor:
        """Attend to cached latents without unfolding them.

        q [B, H, T, n + r], rotated; cache [B, S, C + r], the latents of these tokens among them; positions [B, T], each
        token's place in it. Returns the heads' values [B * T, H * v].
        """
        config = self.config
        batch, heads, length, _ = q.shape
        q_nope, q_rope = q.split((config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1)
        unfold = self.kv_b_proj.weight.to(q.dtype).view(heads, -1, config.kv_lora_rank)
        to_key, to_value = unfold.split((config.qk_nope_head_dim, config.v_head_dim), dim=1)
        q_latent = torch.bmm(q_nope.transpose(0, 1).reshape(heads, batch * length, -1), to_key)
        query = torch.cat((q_latent.view(heads, batch, length, -1).transpose(0, 1), q_rope), dim=-1).flatten(1, 2)
        scores = torch.bmm(query, cache.transpose(1, 2)).float() * self.scale  # [B, H * T, S]
        beyond = torch.arange(cache.shape[1], device=q.device) > positions[..., None]
        scores = scores.view(batch, heads, length, -1).masked_fill_(beyond[:, None], -torch.inf)
        weights = scores.softmax(-1).to(q.dtype).view(batch, heads * length, -1)
        mixed = torch.bmm(weights, cache[..., : config.kv_lora_rank]).view(batch, heads, length, -1)
        mixed = mixed.transpose(0, 1).reshape(heads, batch * length, -1)
        return torch.bmm(mixed, to_value.transpose(1, 2)).transpose(0, 1).flatten(1)
