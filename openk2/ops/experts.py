"""Routed SwiGLU experts as one differentiable operation over tokens sorted by expert.

What it is: gather the tokens expert by expert, one grouped product to gate
and up, SwiGLU, one grouped product down, weight, put back, sum. The backward
pass is written out: a permutation needs no accumulating scatter, and the only
activations kept are the inputs and the gate-up products. The experts' outputs
are not: a weight's gradient y . grad = (down a) . grad = a . (down^T grad) needs
the activation a alone, which is made again from the gate-up products.
Each expert's rows are filled up to a multiple of a block: a matrix product of a
size never seen before is compiled first, which on a CPU takes longer than the
product.

Invariants: cost follows the tokens routed, not the number of experts; an
expert without tokens gets a zero gradient, and so does whatever fills a block.
The slow twin is `reference_experts`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from openk2.ops.fused import (
    gather_sum,
    gather_weighted,
    swiglu_forward,
    weighted_swiglu_backward,
)

MAX_BLOCK = 32  # rows


def _row_block(pairs: int, num_experts: int) -> int:
    """A power of two, at most an eighth of an expert's mean share of the rows, so that filling up costs little."""
    return min(MAX_BLOCK, 1 << max(pairs // num_experts // 8, 1).bit_length() - 1)


def _grouped(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """rows [R, in] (sorted) times each expert's weight [E, out, in] transposed: [R, out]."""
    if rows.dtype == torch.bfloat16:
        return F.grouped_mm(rows, weight.transpose(-1, -2), offs=ends)
    # Other dtypes (fp32 parity, fp64 checks) have no fast grouped kernel on the CPU.
    parts = torch.tensor_split(rows, ends[:-1].tolist())
    return torch.cat([part @ w.t() for part, w in zip(parts, weight, strict=True)])


def _grouped_weight_gradient(grad: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    """Sum over each expert's rows of grad^T rows: [E, out, in]."""
    if rows.dtype == torch.bfloat16:
        return F.grouped_mm(grad.t(), rows, offs=ends)
    splits = ends[:-1].tolist()
    pairs = zip(torch.tensor_split(grad, splits), torch.tensor_split(rows, splits), strict=True)
    return torch.stack([g.t() @ r for g, r in pairs])


class _RoutedExperts(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, regather: bool
    ) -> Tensor:
        num_tokens, top_k = chosen.shape
        flat = chosen.flatten()
        counts = torch.bincount(flat, minlength=gate_up.shape[0])
        block = _row_block(flat.numel(), gate_up.shape[0])
        room = (counts + block - 1) // block * block
        # As many rows whatever the routing, so that buffers are used again; the last expert has what is left over.
        rows = flat.numel() + len(counts) * (block - 1)
        ends = room.cumsum(0)
        order = flat.argsort(stable=True)  # (token, choice) pairs, expert by expert
        shift = (ends - room) - (counts.cumsum(0) - counts)
        pair = torch.arange(order.numel(), device=order.device)
        place = torch.empty_like(order)  # pair -> row
        place[order] = pair + shift[flat[order]]
        # row -> token, or 0 where none is
        source = torch.zeros(rows // block * block, dtype=order.dtype, device=order.device)
        source[place] = pair // top_k
        ends = ends.to(torch.int32)
        ends[-1] = len(source)
        sorted_x = x.index_select(0, source)
        hidden = _grouped(sorted_x, gate_up, ends)
        y = _grouped(swiglu_forward(hidden), down, ends)
        place = place.view(num_tokens, top_k)
        ctx.regather = regather
        ctx.save_for_backward(x if regather else sorted_x, hidden, weights, gate_up, down, place, source, ends)
        return gather_weighted(y, place, weights)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        sorted_x, hidden, weights, gate_up, down, place, source, ends = ctx.saved_tensors
        grad_y = grad_out.index_select(0, source)  # not weighted yet; rows that fill a block have weight 0
        grad_activation = _grouped(grad_y, down.transpose(-1, -2), ends)
        row_weights = torch.zeros(len(source), dtype=weights.dtype, device=grad_out.device)
        row_weights[place] = weights
        grad_hidden, activation, grad_row_weights = weighted_swiglu_backward(grad_activation, hidden, row_weights)
        grad_down = _grouped_weight_gradient(grad_y, activation, ends)
        if ctx.regather:
            sorted_x = sorted_x.index_select(0, source)
        grad_gate_up = _grouped_weight_gradient(grad_hidden, sorted_x, ends)
        grad_sorted = _grouped(grad_hidden, gate_up.transpose(-1, -2), ends)
        grad_weights = grad_row_weights[place].to(weights.dtype)
        return gather_sum(grad_sorted, place), None, grad_weights, grad_gate_up, grad_down, None


def routed_experts(
    x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, *, regather: bool = False
) -> Tensor:
    """Sum over each token's chosen experts of weight * down(silu(gate) * up).

    x [N, D]; chosen int [N, K]; weights fp32 [N, K]; gate_up [E, 2F, D] (gate
    rows first); down [E, D, F]. Returns [N, D] in x's dtype. With `regather`
    the backward pass sorts the inputs again instead of keeping K copies of them.
    """
    return cast(Tensor, _RoutedExperts.apply(x, chosen, weights, gate_up, down, regather))


def reference_experts(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The slow twin of `routed_experts`: one expert after the other, differentiated by autograd."""
    out = torch.zeros_like(x)
    for expert in range(gate_up.shape[0]):
        token, choice = torch.where(chosen == expert)
        gate, up = (x[token] @ gate_up[expert].t()).chunk(2, dim=-1)
        y = (F.silu(gate) * up) @ down[expert].t()
        out = out.index_add(0, token, y * weights[token, choice].to(y.dtype).unsqueeze(-1))
    return out
