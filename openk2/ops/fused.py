"""Elementwise and row-wise kernels, compiled into one pass each where a C++ compiler is at hand.

What it is: plain torch functions, each the whole of an activation's or a
norm's forward or backward. Eager torch runs them as a dozen passes over
memory; `torch.compile` makes each one loop, which on a CPU is several times
faster (benchmarks/kernels.py). The function as written is its own slow twin.

Invariants: values are computed in fp32 (fp64 for fp64 inputs) and rounded once
at the end; shapes are dynamic, so a new batch size compiles nothing. Compiled
and eager results may differ in the last bit: a run settles which one it uses.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])
SMALL = 1 << 15  # elements below which a pass over memory costs less than the call of a compiled kernel
_enabled = False


def set_fusion(enabled: bool) -> None:
    """Run the kernels of this module compiled (True) or as written (False, the state at import)."""
    global _enabled
    _enabled = enabled
    if enabled:
        # Two sizes that happen to be equal once must not be taken for one: each such guess costs a compilation later.
        torch.fx.experimental._config.use_duck_shape = False  # type: ignore[attr-defined]
        torch._dynamo.config.recompile_limit = 64  # dtypes, norm widths and rows of one are compiled apart


def fusion_available() -> tuple[bool, str]:
    """Whether the kernels can be compiled here, and why (not)."""
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return False, "no C++ compiler found"
    try:
        torch.compile(lambda x: x + 1, dynamic=True)(torch.ones(64))
    except Exception as error:  # whatever a toolchain can get wrong, eager still works
        return False, f"torch.compile failed ({type(error).__name__})"
    return True, "C++ compiler found"


def _fused(function: Function) -> Function:
    compiled = torch.compile(function, dynamic=True, fullgraph=True)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        # What is not contiguous would be copied below, and a kernel that writes in place would write to the copy.
        if not _enabled or arguments[0].numel() < SMALL or not arguments[0].is_contiguous():
            return function(*arguments)
        # Gradient flags and strides are part of what is compiled for: all calls are made alike.
        return compiled(*(x.detach().contiguous() if isinstance(x, Tensor) else x for x in arguments))

    return cast(Function, call)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


@_fused
def rms_norm_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [N, D] -> x / rms(x) * weight in x's dtype, and 1 / rms(x) [N, 1]."""
    wide = _wide(x)
    inverse = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (wide * inverse * _wide(weight)).to(x.dtype), inverse


@_fused
def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x [N, D] and weight [D]."""
    normed, grad = _wide(x) * inverse, _wide(grad)
    grad_normed = grad * _wide(weight)
    projection = (grad_normed * normed).mean(-1, keepdim=True)
    return ((grad_normed - normed * projection) * inverse).to(x.dtype), (grad * normed).sum(0).to(weight.dtype)


@_fused
def swiglu_forward(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for gate_up [N, 2F], gate first: [N, F]."""
    gate, up = _wide(gate_up).chunk(2, dim=-1)
    return (gate / (1 + torch.exp(-gate)) * up).to(gate_up.dtype)


@_fused
def swiglu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """Gradient of `swiglu_forward`: [N, 2F]."""
    gate, up = _wide(gate_up).chunk(2, dim=-1)
    grad = _wide(grad)
    share = 1 / (1 + torch.exp(-gate))
    grad_gate = grad * up * share * (1 + gate * (1 - share))
    # Each half is rounded before they are joined: the other way round the loop asks of every element which half it is.
    return torch.cat((grad_gate.to(gate_up.dtype), (grad * gate * share).to(gate_up.dtype)), dim=-1)


@_fused
def gather_weighted(rows: Tensor, place: Tensor, weights: Tensor) -> Tensor:
    """sum_k weights[n, k] * rows[place[n, k]] for rows [R, D], place and weights [N, K]: [N, D]."""
    weights = _wide(weights)
    total = _wide(rows[place[:, 0]]) * weights[:, 0:1]
    for k in range(1, place.shape[1]):  # written out: a sum over a gathered dimension is not made into one pass
        total = total + _wide(rows[place[:, k]]) * weights[:, k : k + 1]
    return total.to(rows.dtype)


@_fused
def gather_sum(rows: Tensor, place: Tensor) -> Tensor:
    """sum_k rows[place[n, k]] for rows [R, D], place [N, K]: [N, D]."""
    total = _wide(rows[place[:, 0]])
    for k in range(1, place.shape[1]):
        total = total + _wide(rows[place[:, k]])
    return total.to(rows.dtype)


@_fused
def gather_dot(rows: Tensor, place: Tensor, x: Tensor) -> Tensor:
    """rows[place[n, k]] . x[n] for rows [R, D], place [N, K], x [N, D]: fp32 (or fp64) [N, K]."""
    return (_wide(rows[place]) * _wide(x).unsqueeze(1)).sum(-1)


@_fused
def gather_scaled(x: Tensor, source: Tensor, scale: Tensor) -> Tensor:
    """x[source[r]] * scale[r] for x [N, D], source and scale [R]: [R, D]."""
    return (_wide(x[source]) * _wide(scale).unsqueeze(-1)).to(x.dtype)


@_fused
def masked_softmax(scores: Tensor, starts: Tensor, first: int, scale: float) -> tuple[Tensor, Tensor]:
    """Causal softmax within documents of one block of queries.

    scores [B, H, Q, K] unscaled, of queries first..first+Q-1 and keys 0..K-1;
    starts [B, Q], the first visible key of each query. Returns the weights in
    the scores' dtype and each row's largest visible scaled score [B, H, Q].
    """
    keys = torch.arange(scores.shape[3], dtype=torch.int32, device=scores.device)
    queries = torch.arange(scores.shape[2], dtype=torch.int32, device=scores.device) + first
    visible = (keys <= queries[:, None]) & (keys >= starts[:, None, :, None])
    scaled = torch.where(visible, _wide(scores) * scale, -torch.inf)
    peak = scaled.amax(-1, keepdim=True)
    exponentials = torch.exp(scaled - peak)
    return (exponentials / exponentials.sum(-1, keepdim=True)).to(scores.dtype), peak.squeeze(-1)


@_fused
def softmax_backward(grad: Tensor, weights: Tensor, scale: float) -> Tensor:
    """Gradient of the unscaled scores from that of the weights [..., K]."""
    wide, grad = _wide(weights), _wide(grad)
    return ((grad - (grad * wide).sum(-1, keepdim=True)) * wide * scale).to(weights.dtype)


@_fused
def normalise_logits(logits: Tensor) -> tuple[Tensor, Tensor]:
    """logits [N, V] -> log-sum-exp [N] (fp32 or fp64) and probabilities in the logits' dtype."""
    wide = _wide(logits)
    peak = wide.amax(-1, keepdim=True)
    exponentials = torch.exp(wide - peak)
    total = exponentials.sum(-1, keepdim=True)
    return (peak + total.log()).squeeze(-1), (exponentials / total).to(logits.dtype)


@_fused
def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the interleaved pairs of x [N, H, R] by the angles cos, sin [N, R / 2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(x.dtype)


@_fused
def scaled_to(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """x * factor (broadcast) in `dtype`."""
    return (x * factor).to(dtype)


@_fused
def look_ahead_(momentum: Tensor, gradient: Tensor, mu: float) -> Tensor:
    """momentum <- mu momentum + gradient, in place; returns Nesterov's look-ahead mu momentum + gradient.

    K2's Algorithm 1 has no look-ahead written in it, Moonlight's first footnote has; we take it.
    """
    moved = momentum * mu + gradient
    momentum.copy_(moved)
    return moved * mu + gradient


@_fused
def apply_update_(parameter: Tensor, update: Tensor, step: Tensor, decay: Tensor, cautious: bool) -> Tensor:
    """parameter <- parameter (1 - decay) - step * update, in place; returns the sum of the update's squares.

    `step` and `decay` are tensors of one value. `cautious` decays only where decay and update pull the same way
    (Chen and others, arXiv 2510.12402).
    """
    wide = _wide(update)
    keep = 1 - decay
    kept = torch.where(wide * parameter > 0, parameter * keep, parameter) if cautious else parameter * keep
    parameter.copy_(kept - wide * step)
    return wide.square().sum()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        out, inverse = rms_norm_forward(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        return *rms_norm_backward(grad.contiguous(), *ctx.saved_tensors), None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate_up)
        return swiglu_forward(gate_up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return swiglu_backward(grad, *ctx.saved_tensors)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return rotate_pairs(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors  # the inverse of a rotation turns the other way
        return rotate_pairs(grad, cos, -sin), None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; x [N, D], weight [D]."""
    return cast(Tensor, _RMSNorm.apply(x, weight, eps))


def swiglu_mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """A dense SwiGLU: x [N, D], gate_up [2F, D], down [D, F]; returns [N, D]."""
    return F.linear(cast(Tensor, _SwiGLU.apply(F.linear(x, gate_up))), down)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the interleaved pairs of x [N, H, R] by the angles cos, sin [N, R / 2], in fp32, returned in x's dtype."""
    return cast(Tensor, _Rotate.apply(x, cos, sin))
