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
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from openk2.ops.cpp import COMPILERS
from openk2.ops.invariant import is_batch_invariant

Function = TypeVar("Function", bound=Callable[..., Any])
SMALL = 1 << 15  # elements below which a pass over memory costs less than the call of a compiled kernel
_enabled = False
_here = threading.local()  # `enabled` on this thread; None or absent: as everywhere


def set_fusion(enabled: bool) -> None:
    """Run the kernels of this module compiled (True) or as written (False, the state at import)."""
    global _enabled
    _enabled = enabled
    if enabled:
        _configure()


@contextmanager
def fusion_on_this_thread(enabled: bool) -> Iterator[None]:
    """Kernels compiled or as written for what this thread runs within, whatever the others do."""
    if enabled:
        _configure()
    before, _here.enabled = getattr(_here, "enabled", None), enabled
    try:
        yield
    finally:
        _here.enabled = before


def _configure() -> None:
    # Two sizes that happen to be equal once must not be taken for one: each such guess costs a compilation later.
    torch.fx.experimental._config.use_duck_shape = False  # type: ignore[attr-defined]
    torch._dynamo.config.recompile_limit = 64  # dtypes, norm widths and rows of one are compiled apart


def fusion_available() -> tuple[bool, str]:
    """Whether the kernels can be compiled here, and why (not)."""
    if not any(shutil.which(name) for name in COMPILERS):
        return False, "no C++ compiler found"
    try:
        torch.compile(lambda x: x + 1, dynamic=True)(torch.ones(64))
    except Exception as error:  # whatever a toolchain can get wrong, eager still works
        return False, f"torch.compile failed ({type(error).__name__})"
    return True, "C++ compiler found"


def fused(function: Function) -> Function:
    """`function`, whose first argument is a tensor, compiled where kernels are and it pays."""
    compiled = torch.compile(function, dynamic=True, fullgraph=True)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        # What is not contiguous would be copied below, and a kernel that writes in place would write to the copy.
        here = getattr(_here, "enabled", None)
        wanted = (_enabled if here is None else here) and not is_batch_invariant()
        if not wanted or arguments[0].numel() < SMALL or not arguments[0].is_contiguous():
            return function(*arguments)
        # Gradient flags and strides are part of what is compiled for: all calls are made alike.
        return compiled(*(x.detach().contiguous() if isinstance(x, Tensor) else x for x in arguments))

    return cast(Function, call)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What values of `dtype` are computed in: fp32, or fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide(x: Tensor) -> Tensor:
    """x in the dtype it is computed in."""
    return x.to(wide_dtype(x.dtype))


@fused
def rms_norm_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [N, D] -> x / rms(x) * weight in x's dtype, and 1 / rms(x) [N, 1]."""
    values = wide(x)
    inverse = (values.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (values * inverse * wide(weight)).to(x.dtype), inverse


@fused
def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x [N, D] and weight [D]."""
    normed, grad = wide(x) * inverse, wide(grad)
    grad_normed = grad * wide(weight)
    projection = (grad_normed * normed).mean(-1, keepdim=True)
    return ((grad_normed - normed * projection) * inverse).to(x.dtype), (grad * normed).sum(0).to(weight.dtype)


@fused
def swiglu_forward(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for gate_up [N, 2F], gate first: [N, F]."""
    gate, up = wide(gate_up).chunk(2, dim=-1)
    return (gate / (1 + torch.exp(-gate)) * up).to(gate_up.dtype)


@fused
def swiglu_backward(grad: Tensor, gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of gate_up [N, 2F] from that of silu(gate) * up [N, F], which is made again and returned with it."""
    gate, up = wide(gate_up).chunk(2, dim=-1)
    grad = wide(grad)
    share = 1 / (1 + torch.exp(-gate))
    grad_gate = grad * up * share * (1 + gate * (1 - share))
    # Each half is rounded before they are joined: the other way round the loop asks of every element which half it is.
    joined = torch.cat((grad_gate.to(gate_up.dtype), (grad * gate * share).to(gate_up.dtype)), dim=-1)
    return joined, (gate * share * up).to(gate_up.dtype)


@fused
def weighted_swiglu_backward(grad: Tensor, gate_up: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of y = weights * (silu(gate) * up) by rows, for the gradient [N, F] of y, gate_up [N, 2F] and weights [N].

    Returns the gradient of gate_up, y itself, and the gradient of the weights (fp32 or fp64).
    """
    gate, up = wide(gate_up).chunk(2, dim=-1)
    grad, weights = wide(grad), wide(weights).unsqueeze(-1)
    share = 1 / (1 + torch.exp(-gate))
    activation = gate * share * up
    weighted = grad * weights
    grad_gate = weighted * up * share * (1 + gate * (1 - share))
    grad_gate_up = torch.cat((grad_gate.to(gate_up.dtype), (weighted * gate * share).to(gate_up.dtype)), dim=-1)
    return grad_gate_up, (activation * weights).to(gate_up.dtype), (grad * activation).sum(-1)


@fused
def gather_weighted(rows: Tensor, place: Tensor, weights: Tensor) -> Tensor:
    """sum_k weights[n, k] * rows[place[n, k]] for rows [R, D], place and weights [N, K]: [N, D]."""
    weights = wide(weights)
    total = wide(rows[place[:, 0]]) * weights[:, 0:1]
    for k in range(1, place.shape[1]):  # written out: a sum over a gathered dimension is not made into one pass
        total = total + wide(rows[place[:, k]]) * weights[:, k : k + 1]
    return total.to(rows.dtype)


@fused
def gather_sum(rows: Tensor, place: Tensor) -> Tensor:
    """sum_k rows[place[n, k]] for rows [R, D], place [N, K]: [N, D]."""
    total = wide(rows[place[:, 0]])
    for k in range(1, place.shape[1]):
        total = total + wide(rows[place[:, k]])
    return total.to(rows.dtype)


@fused
def fill_mask_(mask: Tensor, visible_from: Tensor, first: int) -> Tensor:
    """Fill mask [B, 1, Q, K] of queries first..first+Q-1 and keys 0..K-1: 0 where a query sees a key, else -inf.

    visible_from [B, Q] is the first visible key of each query.
    """
    keys = torch.arange(mask.shape[3], dtype=torch.int32, device=mask.device)
    queries = torch.arange(mask.shape[2], dtype=torch.int32, device=mask.device) + first
    visible = (keys <= queries[:, None]) & (keys >= visible_from[:, None, :, None])
    return mask.copy_(torch.where(visible, 0.0, -torch.inf))


def _scaled(scores: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scaled = wide(scores) * scale
    return scaled if mask is None else scaled + mask


@fused
def softmax_block(scores: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """exp(score * scale - peak) [B, H, Q, K] in the scores' dtype, and of each query, [B, H, Q], the peak (its largest
    visible score, scale included, -inf where none is) and the sum of exponentials.

    mask [B or 1, 1, Q, K] is 0 where a key is visible, else -inf; None where all are.
    """
    scaled = _scaled(scores, mask, scale)
    peak = scaled.amax(-1, keepdim=True)
    # Summed as rounded, which is what multiplies the values; the unrounded ones would go to memory and back.
    exponentials = torch.exp(scaled - peak.clamp(min=-1e30)).to(scores.dtype)
    return exponentials, peak.squeeze(-1), wide(exponentials).sum(-1)


@fused
def largest_of_block(scores: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The peaks of `softmax_block` alone."""
    return _scaled(scores, mask, scale).amax(-1)


@fused
def softmax_block_backward(
    scores: Tensor,
    mask: Tensor | None,
    scale: float,
    grad: Tensor,
    peak: Tensor,
    delta: Tensor,
) -> tuple[Tensor, Tensor]:
    """The exponentials again, and the gradient of the unscaled scores, both [B, H, Q, K] in the scores' dtype.

    grad [B, H, Q, K] is that of the weights over the row's sum of exponentials; delta [B, H, Q] the row's sum of
    grad * exponentials, all keys together (Dao, arXiv 2307.08691, section 3.1).
    """
    scaled = _scaled(scores, mask, scale)
    # Rounded as kept ones are, so that both ways give the same bits.
    exponentials = torch.exp(scaled - peak.unsqueeze(-1)).to(scores.dtype)
    grad_scores = wide(exponentials) * (wide(grad) - delta.unsqueeze(-1)) * scale
    return exponentials, grad_scores.to(scores.dtype)


@fused
def softmax_block_gradient(grad: Tensor, exponentials: Tensor, delta: Tensor, scale: float) -> Tensor:
    """The gradient alone, from exponentials that were kept; arguments as above."""
    return (wide(exponentials) * (wide(grad) - delta.unsqueeze(-1)) * scale).to(grad.dtype)


@fused
def mixed_gradient(grad: Tensor, out: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """What all tiles of attention's backward pass need of the output's gradient.

    grad and out are [B, T, H, v], sums [B, H, T]. Returns the gradient over the row's sum of exponentials
    [B, H, T, v], so that exponentials can stand for weights, and its product with the output [B, H, T].
    """
    divided = (wide(grad) / sums.transpose(1, 2).unsqueeze(-1)).to(grad.dtype)
    delta = (wide(divided) * wide(out)).sum(-1)
    return divided.transpose(1, 2).contiguous(), delta.transpose(1, 2).contiguous()


@fused
def row_largest(x: Tensor) -> Tensor:
    """The largest of each row of x [N, V], [N]."""
    return x.amax(-1)


@fused
def exponentials_(logits: Tensor, peak: Tensor) -> Tensor:
    """exp(logit - peak) in place of logits [N, V], for peak [N]; returns the sums [N] (fp32 or fp64)."""
    exponentials = torch.exp(wide(logits) - wide(peak).unsqueeze(-1))
    total = exponentials.sum(-1)
    logits.copy_(exponentials)
    return total


def normalise_logits_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """exp(logit - largest) in place of logits [N, V]; returns their log-sum-exp and the sums [N] (fp32 or fp64).

    Two kernels: as one, the exponentials would go to memory in fp32 and come back for their sum.
    """
    peak = row_largest(logits)
    total = exponentials_(logits, peak)
    return peak + total.log(), total


@fused
def logits_gradient_(exponentials: Tensor, sums: Tensor, targets: Tensor, grad: Tensor) -> Tensor:
    """grad * (one-hot target - probabilities) in place of the exponentials [N, V]; sums, targets, grad [N]."""
    columns = torch.arange(exponentials.shape[1], device=exponentials.device)
    probabilities = wide(exponentials) * (1 / sums).unsqueeze(-1)
    hit = (columns == targets.unsqueeze(-1)).to(probabilities.dtype)
    return exponentials.copy_((hit - probabilities) * grad.unsqueeze(-1))


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        out, inverse = rms_norm_forward(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        return *rms_norm_backward(grad.contiguous(), *ctx.saved_tensors), None


class _SwiGLUMLP(torch.autograd.Function):
    """Keeps the input and the gate-up products; the activation is made again on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:  # type: ignore[override]
        hidden = F.linear(x, gate_up)
        ctx.save_for_backward(x, hidden, gate_up, down)
        return F.linear(swiglu_forward(hidden), down)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, hidden, gate_up, down = ctx.saved_tensors
        grad_hidden, activation = swiglu_backward(grad @ down, hidden)
        return grad_hidden @ gate_up, grad_hidden.t() @ x, grad.t() @ activation


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; x [N, D], weight [D]."""
    return cast(Tensor, _RMSNorm.apply(x, weight, eps))


def swiglu_mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """A dense SwiGLU: x [N, D], gate_up [2F, D], down [D, F]; returns [N, D]."""
    return cast(Tensor, _SwiGLUMLP.apply(x, gate_up, down))
