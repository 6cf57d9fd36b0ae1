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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openk2.config.model import ModelConfig
from openk2.model.layout import Layout
from openk2.model.norm import RMSNorm
from openk2.model.rope import softmax_scale
from openk2.ops.attention import document_attention, exact_peak_scores
from openk2.ops.fused import rotate

# The two norms inside attention use this epsilon whatever the config says, as in the released code.
INNER_NORM_EPS = 1e-6
# A rounded maximum below this share of tau cannot hide a true one above it (bf16: 2^-8 relative).
NEAR_TAU = 0.98


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

    def _queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, D], cos/sin [N, r/2] -> nope [N, H, n] and rotated rope [N, H, r]."""
        config = self.config
        if config.q_lora_rank is None:
            q = F.linear(x, self.q_proj.weight.to(x.dtype))
        else:
            latent = self.q_a_layernorm(F.linear(x, self.q_a_proj.weight.to(x.dtype)))
            q = F.linear(latent, self.q_b_proj.weight.to(x.dtype))
        nope, rope = q.unflatten(-1, (config.num_attention_heads, -1)).split(
            (config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1
        )
        return nope, rotate(rope, cos, sin)

    def latents(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, D] -> normalised latent [N, C] and rotated shared key [N, r]: what the cache holds."""
        joint = F.linear(x, self.kv_a_proj_with_mqa.weight.to(x.dtype))
        latent, rope = joint.split((self.config.kv_lora_rank, self.config.qk_rope_head_dim), dim=-1)
        return self.kv_a_layernorm(latent.contiguous()), rotate(rope.unsqueeze(1), cos, sin).squeeze(1)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout, tau: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend within documents.

        x [N, D], cos/sin [N, r/2]. Returns the output [N, D], the maximum
        score per head fp32 [H], and what a cache keeps [N, C + r]. Where the
        rounded maximum comes near `tau` it is replaced by the exact one.
        """
        config = self.config
        batch, length = layout.positions.shape
        heads = config.num_attention_heads
        q_nope, q_rope = self._queries(x, cos, sin)
        latent, k_rope = self.latents(x, cos, sin)
        unfolded = F.linear(latent, self.kv_b_proj.weight.to(x.dtype)).unflatten(-1, (heads, -1))
        k_nope, value = unfolded.split((config.qk_nope_head_dim, config.v_head_dim), dim=-1)
        q = torch.cat((q_nope, q_rope), dim=-1).view(batch, length, heads, -1).transpose(1, 2)
        k = torch.cat((k_nope, k_rope.unsqueeze(1).expand(-1, heads, -1)), dim=-1)
        k = k.view(batch, length, heads, -1).transpose(1, 2)
        v = value.view(batch, length, heads, -1).transpose(1, 2)
        out, peaks = document_attention(q, k, v, layout.starts, self.scale)
        if tau is not None and x.dtype == torch.bfloat16 and bool(peaks.max() > NEAR_TAU * tau):
            peaks = exact_peak_scores(q.detach(), k.detach(), layout.starts, self.scale)
        padding = (layout.documents < 0).unsqueeze(1)
        max_scores = peaks.masked_fill(padding, -torch.inf).amax((0, 2))
        out = out.transpose(1, 2).reshape(batch * length, -1)
        return F.linear(out, self.o_proj.weight.to(x.dtype)), max_scores, torch.cat((latent, k_rope), dim=-1)

    def decode(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Tensor, positions: Tensor) -> Tensor:
        """New tokens of B sequences against cached latents, without unfolding them.

        x [B * T, D]; cache [B, S, C + r], which holds these tokens' own latents already (written by the caller from
        `latents`); positions [B, T], each token's place in it. Returns [B * T, D].
        """
        config = self.config
        batch, length = positions.shape
        q_nope, q_rope = self._queries(x, cos, sin)  # [B * T, H, n], [B * T, H, r]
        unfold = self.kv_b_proj.weight.to(x.dtype).view(config.num_attention_heads, -1, config.kv_lora_rank)
        to_key, to_value = unfold.split((config.qk_nope_head_dim, config.v_head_dim), dim=1)
        q_latent = torch.bmm(q_nope.transpose(0, 1), to_key).transpose(0, 1)  # [B * T, H, C]
        query = torch.cat((q_latent, q_rope), dim=-1).view(batch, length * config.num_attention_heads, -1)
        scores = torch.bmm(query, cache.transpose(1, 2)).float() * self.scale  # [B, T * H, S]
        beyond = torch.arange(cache.shape[1], device=x.device) > positions[..., None]
        scores = scores.view(batch, length, -1, cache.shape[1]).masked_fill_(beyond[:, :, None], -torch.inf)
        weights = scores.softmax(-1).to(x.dtype).view(batch, -1, cache.shape[1])
        mixed = torch.bmm(weights, cache[..., : config.kv_lora_rank])  # [B, T * H, C]
        mixed = mixed.view(batch * length, config.num_attention_heads, -1)
        out = torch.bmm(mixed.transpose(0, 1), to_value.transpose(1, 2)).transpose(0, 1)  # [B * T, H, v]
        return F.linear(out.flatten(1), self.o_proj.weight.to(x.dtype))
