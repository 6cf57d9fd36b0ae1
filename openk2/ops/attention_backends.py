"""The ways in which attention can be computed, by name.

| name        | what it is                                   | chosen     | largest scores         | tested       |
|-------------|----------------------------------------------|------------|------------------------|--------------|
| `tiled`     | `ops.attention`: products and fused softmax  | on the CPU | its own, rounded once  | CPU          |
| `flex`      | FlexAttention, compiled, with a block mask   | on a GPU   | log-sum-exp as a bound | see below    |
| `sdpa`      | aten's flash attention, document by document | by name    | log-sum-exp as a bound | CPU          |
| `invariant` | `ops.invariant`: bits that no company alters | by name    | its own, rounded once  | CPU          |

`flex` was never run on a GPU. On the CPU its function is tested as written:
the compiled one gives no log-sum-exp there and neither has a backward pass.

Invariants: none holds a mask or scores of T x T; all see the same tokens
(`starts[i] <= j <= i`). Each says how far above its reported maxima the true
ones may lie: a head whose bound does not exceed QK-Clip's threshold needs no
clip, and where one does the caller asks `exact_peaks`. A row's log-sum-exp
is no less than its maximum but for its rounding, which on the CPU reaches 8e-5
at scores near 190; the margin is wider than that.
Left out: sinks, dropout and sliding windows, which K2 has none of.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

from openk2.ops.attention import TiledAttention, Tiling, document_attention
from openk2.ops.fused import wide_dtype
from openk2.ops.invariant import tile_attention

LSE_MARGIN = 1e-4  # of max(1, |log-sum-exp|)
ROUNDING = 1.01 * 2**-8  # of bf16's rounding to nearest, and of the products' own sums in fp32


@dataclasses.dataclass(frozen=True)
class Span:
    """One document of `rows` from `first` up to `last`, or if `single` several of one token each."""

    rows: slice
    first: int
    last: int
    single: bool


def document_spans(starts: Tensor) -> list[list[Span]]:
    """Spans in order of position, row by row, or once for all rows where their documents begin alike."""
    alike = bool((starts == starts[:1]).all())
    length, step = starts.shape[1], len(starts) if alike else 1
    found = []
    for row in range(0, len(starts), step):
        begins = [*starts[row].unique(sorted=True).tolist(), length]
        spans: list[Span] = []
        for first, last in zip(begins[:-1], begins[1:], strict=True):
            single = last - first == 1
            if single and spans and spans[-1].single:  # padding, mostly
                spans[-1] = dataclasses.replace(spans[-1], last=last)
            else:
                spans.append(Span(slice(row, row + step), first, last, single))
        found.append(spans)
    return found


class Backend(ABC):
    """One way to attend."""

    batch_invariant = False  # whether the whole forward pass is to be so

    @abstractmethod
    def prepare(self, tiling: Tiling, *, frugal: bool) -> Any:
        """What all layers of a forward pass can share. `frugal`: rather compute again than keep."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, prepared: Any, scale: float) -> tuple[Tensor, Tensor]:
        """q, k [B, H, T, qk_dim], v [B, H, T, v_dim]: the output [B, H, T, v_dim] and each query's peak [B, H, T], its
        largest visible score or a number a little above it, fp32 (fp64 where q is) and without gradient."""

    @abstractmethod
    def bound(self, peaks: Tensor, dtype: torch.dtype) -> Tensor:
        """No less than the true largest scores, for peaks found with queries and keys of `dtype`."""


class Tiled(Backend):
    def prepare(self, tiling: Tiling, *, frugal: bool) -> Any:
        return tiling, not frugal

    def attend(self, q: Tensor, k: Tensor, v: Tensor, prepared: Any, scale: float) -> tuple[Tensor, Tensor]:
        tiling, keep = prepared
        return document_attention(q, k, v, tiling, scale, keep=keep)

    def bound(self, peaks: Tensor, dtype: torch.dtype) -> Tensor:
        return _widened(peaks, peaks.abs() * ROUNDING) if dtype == torch.bfloat16 else peaks


class Invariant(Tiled):
    """The forward pass of `ops.invariant`, document by document; the backward pass of `ops.attention`."""

    batch_invariant = True

    def prepare(self, tiling: Tiling, *, frugal: bool) -> Any:
        return tiling, document_spans(tiling.starts)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, prepared: Any, scale: float) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], _InvariantAttention.apply(q, k, v, *prepared, scale))


class _InvariantAttention(TiledAttention):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiling: Tiling, spans: list[list[Span]], scale: float
    ) -> tuple[Tensor, Tensor]:
        out = v.new_empty(v.shape).transpose(1, 2).contiguous()
        peaks, sums = (torch.ones(q.shape[:3], device=q.device) for _ in range(2))
        for span in (span for row in spans for span in row):
            place = (span.rows, slice(None), slice(span.first, span.last))
            if span.single:
                peaks[place] = torch.einsum("bhtd,bhtd->bht", q[place], k[place]).float() * scale
                out[place[0], place[2]] = v[place].transpose(1, 2)
                continue
            positions = torch.arange(span.last - span.first, device=q.device).expand(q[place].shape[0], -1)
            mixed, peaks[place], sums[place] = tile_attention(q[place], k[place], v[place], positions, scale)
            out[place[0], place[2]] = (mixed / sums[place].unsqueeze(-1)).transpose(1, 2).to(out.dtype)
        ctx.kept, ctx.tiling, ctx.scale = None, tiling, scale
        ctx.save_for_backward(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), out, peaks, sums)
        ctx.mark_non_differentiable(peaks)
        return out.transpose(1, 2), peaks


class BoundedByLogSumExp(Backend):
    def bound(self, peaks: Tensor, dtype: torch.dtype) -> Tensor:
        return _widened(peaks, LSE_MARGIN * peaks.abs().clamp(min=1))


def _widened(peaks: Tensor, margin: Tensor) -> Tensor:
    return torch.where(peaks == -torch.inf, peaks, peaks + margin)  # of padding alone: -inf + inf would be no number


class Sdpa(BoundedByLogSumExp):
    def prepare(self, tiling: Tiling, *, frugal: bool) -> list[list[Span]]:
        return document_spans(tiling.starts)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, prepared: Any, scale: float) -> tuple[Tensor, Tensor]:
        width = v.shape[-1]
        v = F.pad(v, (0, q.shape[-1] - width))  # unequal widths have no fused kernel
        rows = []
        for spans in cast(list[list[Span]], prepared):
            parts = []
            for span in spans:
                part = (span.rows, slice(None), slice(span.first, span.last))
                if span.single:  # a token that sees itself alone
                    alone, its_key = (x[part].detach().to(wide_dtype(x.dtype)) for x in (q, k))
                    parts.append((v[part], (alone * its_key).sum(-1) * scale))
                else:
                    parts.append(_flash(q[part], k[part], v[part], scale))
            rows.append([torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True)])
        out, peaks = (torch.cat(tensors) for tensors in zip(*rows, strict=True))
        return out[..., :width], peaks


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention of whole rows and its log-sum-exp fp32 [B, H, T]."""
    if q.device.type == "cpu":
        return cast(
            tuple[Tensor, Tensor],
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True, scale=scale),
        )
    return cast(
        tuple[Tensor, Tensor], torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True, scale=scale)[:2]
    )


class Flex(BoundedByLogSumExp):
    def prepare(self, tiling: Tiling, *, frugal: bool) -> Any:
        starts = tiling.starts

        def visible(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (key >= starts[row, query])

        batch, length = starts.shape
        return create_block_mask(visible, batch, None, length, length, device=str(starts.device))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, prepared: Any, scale: float) -> tuple[Tensor, Tensor]:
        on_cpu = q.device.type == "cpu"
        if on_cpu and torch.is_grad_enabled() and q.requires_grad:
            raise ValueError("attention: saw flex on the CPU, where it has no backward pass; expected tiled or sdpa")
        attention = cast(Callable[..., Any], flex_attention) if on_cpu else _compiled_flex()
        out, found = attention(q, k, v, block_mask=prepared, scale=scale, return_aux=AuxRequest(lse=True))
        return cast(Tensor, out), cast(Tensor, found.lse).detach()


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


BACKENDS: dict[str, Backend] = {"tiled": Tiled(), "flex": Flex(), "sdpa": Sdpa(), "invariant": Invariant()}


def choose_backend(name: str, device: torch.device) -> str:
    """The backend of that name; "auto" is the fastest that has a backward pass on `device`."""
    if name == "auto":
        return "tiled" if device.type == "cpu" else "flex"
    if name not in BACKENDS:
        raise ValueError(f"attention: saw {name!r}, expected auto, {', '.join(BACKENDS)}")
    return name
