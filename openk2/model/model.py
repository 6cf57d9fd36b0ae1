"""The decoder: embedding, blocks, final norm, head.

One class trains, scores and serves. It holds no distributed code, reads no
environment and no files. Parameters stay in the dtype they are stored in;
`compute_dtype` is the dtype of activations and products, into which weights
are cast where they are used (a no-op once they are stored in it).

Shapes: B rows, T tokens a row, N = B x T, D model, V vocabulary, E experts, K chosen, H heads, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openk2.config.model import ModelConfig
from openk2.model.context import ForwardContext
from openk2.model.layout import Layout
from openk2.model.mla import MultiHeadLatentAttention, Scores
from openk2.model.moe import MLP, MixtureOfExperts, Router, Routing, balance_loss
from openk2.model.norm import RMSNorm
from openk2.model.rope import rotary_turns
from openk2.ops.attention import Tiling
from openk2.ops.attention_backends import BACKENDS, choose_backend
from openk2.ops.cross_entropy import linear_log_prob
from openk2.ops.invariant import batch_invariant
from openk2.ops.recompute import Recompute
from openk2.protocols import ParameterSpec, QKGroup


class LatentCache(Protocol):
    """What sequences keep of the tokens that were read, and how new tokens attend to it."""

    def attend(self, layer: int, attention: MultiHeadLatentAttention, x: Tensor, turns: Tensor) -> Tensor:
        """Put away the latents of new tokens x [N, D] (turns [1, N, r/2]) and attend to what their sequences have so
        far: [N, D]."""
        ...


@dataclass(frozen=True)
class ForwardStats:
    """What a forward pass saw, for the step that commits it.

    `max_scores` fp32 [L, H], the largest softmax input per layer and head, and
    `score_bounds`, which they do not exceed (see `mla.Scores`);
    `expert_counts` int [L_moe, E], real tokens per expert; `balance_loss`, the
    mean over MoE layers (with gradient); `chosen` int [L_moe, N, K], -1 where
    a token met no expert because nothing was to be read from it.
    """

    max_scores: Tensor
    score_bounds: Tensor
    expert_counts: Tensor
    balance_loss: Tensor
    chosen: Tensor


class BlockOutput(NamedTuple):
    """x [N, D] (or [R, D]), the largest scores, latents [N, C + r], and the routing of an MoE layer."""

    x: Tensor
    scores: Scores
    latents: Tensor
    routing: Routing | None


class Block(nn.Module):
    """Attention and feed-forward with pre-norms."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MultiHeadLatentAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        dense = layer < config.first_k_dense_replace
        self.mlp: MLP | MixtureOfExperts = (
            MLP(config.hidden_size, config.intermediate_size) if dense else MixtureOfExperts(config)
        )

    def forward(
        self,
        x: Tensor,
        context: ForwardContext,
        chosen: Tensor | None,
        read: Tensor | None,
    ) -> BlockOutput:
        """x [N, D]. `chosen` [N, K] replays a routing; `read` [R] names the tokens that the feed-forward is for."""
        again = context.again
        attended, scores, latents = self.self_attn(again(self.input_layernorm, x), context)
        x = x + attended
        if read is not None:
            x = x.index_select(0, read)
            chosen = None if chosen is None else chosen.index_select(0, read)
        normed = again(self.post_attention_layernorm, x)
        if isinstance(self.mlp, MLP):
            return BlockOutput(x + self.mlp(normed), scores, latents, None)
        out, routing = self.mlp(normed, chosen, again)
        return BlockOutput(x + out, scores, latents, routing)


class Model(nn.Module):
    """`model(input_ids [B, T]) -> logits [B, T, V]`; each row is one causal document.

    How it computes, which changes its results by rounding at most, is set from
    outside: `attention` names a backend (or "auto"), `recompute` makes cheap
    results again in the backward pass instead of keeping them, and above
    `qk_clip_tau` a head's largest score is computed exactly.
    """

    def __init__(self, config: ModelConfig, *, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.attention, self.recompute = "auto", False
        self.qk_clip_tau: float | None = None
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._turns: Tensor | None = None

    def blocks(self) -> Iterator[Block]:
        """The layers in order, typed."""
        return (cast(Block, layer) for layer in self.layers)

    @torch.no_grad()
    def init_weights(self, seed: int) -> Model:
        """Normal(0, initializer_range) for matrices, ones for norms; K2 states no other rule."""
        generator = torch.Generator().manual_seed(seed)
        spread = self.config.initializer_range
        for parameter in self.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, spread, generator=generator)
        return self

    def rotary(self, positions: Tensor) -> Tensor:
        """What the rotary pairs at positions [B, T] are multiplied with, complex64 [B, T, r/2]."""
        if self._turns is None or self._turns.device != positions.device:
            self._turns = rotary_turns(self.config, self.config.max_position_embeddings).to(positions.device)
        return self._turns[positions]

    def _arithmetic(self, device: torch.device) -> AbstractContextManager[None]:
        """How products and kernels compute within it."""
        wanted = BACKENDS[choose_backend(self.attention, device)].batch_invariant
        if wanted and self.compute_dtype != torch.bfloat16:
            dtype = str(self.compute_dtype).removeprefix("torch.")
            raise ValueError(
                f"attention: saw invariant for a model that computes in {dtype}, expected bfloat16, whose products "
                "alone are so; choose that dtype or another attention"
            )
        return batch_invariant(wanted)

    def _context(self, layout: Layout) -> ForwardContext:
        again = Recompute(self.recompute and torch.is_grad_enabled())
        attention = BACKENDS[choose_backend(self.attention, layout.starts.device)]
        tiling = Tiling(layout.starts)
        prepared = attention.prepare(tiling, frugal=again.enabled)
        turns = self.rotary(layout.positions)
        return ForwardContext(layout, turns, tiling, attention, prepared, self.qk_clip_tau, again)

    def hidden_states(
        self,
        input_ids: Tensor,
        layout: Layout | None = None,
        *,
        chosen: Tensor | None = None,
        cache: list[Tensor] | None = None,
        read: Tensor | None = None,
    ) -> tuple[Tensor, ForwardStats]:
        """input_ids [B, T] -> final normalised states [N, D] and what the pass saw.

        `chosen` [L_moe, N, K] replays a recorded routing. `cache` collects, per
        layer, the latents [N, C + r] that decoding continues from. `read` int [R]
        names the flat places whose states are wanted, then [R, D]: the last
        feed-forward runs on them alone, for after the last attention no token
        looks at another.
        """
        batch, length = input_ids.shape
        layout = layout or Layout.whole_rows(batch, length, input_ids.device)
        context = self._context(layout)
        with context.again, self._arithmetic(input_ids.device):
            return self._through_layers(input_ids, context, chosen, cache, read)

    def _through_layers(
        self,
        input_ids: Tensor,
        context: ForwardContext,
        chosen: Tensor | None,
        cache: list[Tensor] | None,
        read: Tensor | None,
    ) -> tuple[Tensor, ForwardStats]:
        """`hidden_states` in a context."""
        layout = context.layout
        documents = layout.documents.flatten()
        num_tokens = (documents >= 0).sum()
        x = self.embed_tokens(input_ids.flatten()).to(self.compute_dtype)
        all_scores: list[Scores] = []
        counts, losses = [], []
        choices: list[Tensor] = []
        for index, block in enumerate(self.blocks()):
            last = index == len(self.layers) - 1
            replayed = None if chosen is None or index < self.config.first_k_dense_replace else chosen[len(choices)]
            x, scores, latents, routing = block(x, context, replayed, read if last else None)
            all_scores.append(scores)
            if cache is not None:
                cache.append(latents)
            if routing is None:
                continue
            if read is not None and last:
                documents = documents.index_select(0, read)
            choices.append(routing.chosen)
            real = routing.chosen[documents >= 0].flatten()
            counts.append(torch.bincount(real, minlength=self.config.n_routed_experts))
            if self.training:
                losses.append(balance_loss(routing, documents, layout.num_documents, num_tokens))
        if read is not None and choices:
            nobody = choices[-1].new_full((input_ids.numel(), choices[-1].shape[1]), -1)
            choices[-1] = nobody.index_copy(0, read, choices[-1])
        stats = ForwardStats(
            max_scores=torch.stack([scores.max_scores for scores in all_scores]),
            score_bounds=torch.stack([scores.bounds for scores in all_scores]),
            expert_counts=torch.stack(counts)
            if counts
            else torch.zeros(0, self.config.n_routed_experts, dtype=torch.int64),
            balance_loss=torch.stack(losses).mean() if losses else x.new_zeros((), dtype=torch.float32),
            chosen=torch.stack(choices) if choices else torch.zeros(0, input_ids.numel(), 0, dtype=torch.int64),
        )
        return self.norm(x), stats

    def log_probs(
        self, input_ids: Tensor, targets: Tensor, layout: Layout | None = None, *, chosen: Tensor | None = None
    ) -> tuple[Tensor, ForwardStats]:
        """Log-probability of each target [B, T] (those below 0 give 0): fp32 [B, T], and what the pass saw."""
        flat = targets.flatten()
        counted = (flat >= 0).nonzero().squeeze(1)
        hidden, stats = self.hidden_states(input_ids, layout, chosen=chosen, read=counted)
        with self._arithmetic(hidden.device):
            found = linear_log_prob(hidden, self.lm_head.weight.to(hidden.dtype), flat.index_select(0, counted))
        spread = found.new_zeros(flat.shape).index_copy(0, counted, found)
        return torch.stack(spread.split(targets.shape[1])), stats  # not a view, on which a sharded model's hooks fail

    def logits(self, hidden: Tensor) -> Tensor:
        """Head product of final states [..., D]: [..., V] in the compute dtype."""
        return F.linear(hidden, self.lm_head.weight.to(hidden.dtype))

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden, _ = self.hidden_states(input_ids)
        return self.logits(hidden).view(*input_ids.shape, -1)

    def extend(self, input_ids: Tensor, positions: Tensor, cache: LatentCache, read: Tensor) -> tuple[Tensor, Tensor]:
        """Further tokens of any sequences, whose earlier ones are in `cache`: the forward pass of the engine.

        input_ids and positions int [N]; `read` int [R] names the tokens after which something is to be predicted.
        Returns their logits [R, V] and the experts [L_moe, R, K] chosen there.
        """
        with self._arithmetic(input_ids.device):
            turns = self.rotary(positions)[None]
            x = self.embed_tokens(input_ids).to(self.compute_dtype)
            choices = []
            for index, block in enumerate(self.blocks()):
                x = x + cache.attend(index, block.self_attn, block.input_layernorm(x), turns)
                last = index == len(self.layers) - 1
                if last:
                    x = x.index_select(0, read)
                normed = block.post_attention_layernorm(x)
                if isinstance(block.mlp, MLP):
                    x = x + block.mlp(normed)
                else:
                    out, routing = block.mlp(normed)
                    x = x + out
                    choices.append(routing.chosen if last else routing.chosen.index_select(0, read))
            nobody = torch.zeros(0, len(read), self.config.num_experts_per_tok, dtype=torch.int64)
            chosen = torch.stack(choices) if choices else nobody
            return self.logits(self.norm(x)), chosen

    def routers(self) -> list[Router]:
        """The routers, first MoE layer first."""
        return [block.mlp.gate for block in self.blocks() if isinstance(block.mlp, MixtureOfExperts)]

    def parameter_specs(self, *, split_heads: bool = False) -> list[ParameterSpec]:
        """Every parameter's route through the optimizer and the matrices Muon sees in it.

        `split_heads` ("Muon Split"): each head's rows of the query and key-value projections are a matrix of their own.
        """
        heads = self.config.num_attention_heads if split_heads else 1
        return [_specify(name, parameter, heads) for name, parameter in self.named_parameters()]

    def qk_groups(self) -> list[QKGroup]:
        """What QK-Clip scales, layer by layer, in the order of `ForwardStats.max_scores`."""
        config = self.config
        return [
            QKGroup.latent(
                name=f"layers.{index}.self_attn",
                query=block.self_attn.query_weight,
                key_value=block.self_attn.kv_b_proj.weight,
                num_heads=config.num_attention_heads,
                nope_dim=config.qk_nope_head_dim,
                rope_dim=config.qk_rope_head_dim,
                value_dim=config.v_head_dim,
            )
            for index, block in enumerate(self.blocks())
        ]


def _specify(name: str, parameter: nn.Parameter, heads: int) -> ParameterSpec:
    """K2's split: AdamW for embedding, head and vectors; Muon for every other matrix, the router too."""
    if parameter.ndim == 1:
        return ParameterSpec(name, parameter, "adamw", "norm")
    if name.startswith("embed_tokens"):
        return ParameterSpec(name, parameter, "adamw", "embedding")
    if name.startswith("lm_head"):
        return ParameterSpec(name, parameter, "adamw", "head")
    *_, rows, columns = parameter.shape
    count = parameter.shape[0] if parameter.ndim == 3 else 1
    if name.endswith("gate_up_proj"):  # two matrices side by side: gate and up are orthogonalised apart
        count, rows = count * 2, rows // 2
    if name.endswith(("q_proj.weight", "q_b_proj.weight", "kv_b_proj.weight")):
        count, rows = heads, rows // heads
    if ".self_attn." in name:
        role = "attention"
    elif ".mlp.gate." in name:
        role = "router"
    else:
        role = "experts" if parameter.ndim == 3 else "mlp"
    return ParameterSpec(name, parameter, "muon", role, (count, rows, columns))
