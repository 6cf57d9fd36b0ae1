"""QK-Clip: after the step, shrink the query and key rows of heads whose scores grew beyond tau.

Per head h with maximum score S_h > tau and gamma = tau / S_h: in latent
attention the query's and the key's nope rows are scaled by sqrt(gamma), the
query's rotary rows by gamma; the rotary key, shared by all heads, and the value
rows stay untouched. So the same batch's maximum would be tau, had the weights
not just moved. Which rows those are is the model's declaration (`QKGroup`).
Source: K2 report (arXiv 2507.20534), section 2.1 and appendix D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openk2.optim.placement import WHOLE
from openk2.protocols import Placement, QKGroup, QKRows


@torch.no_grad()
def qk_clip_(groups: Sequence[QKGroup], max_scores: Tensor, tau: float, placement: Placement = WHOLE) -> Tensor:
    """Scale the weights in place.

    max_scores [L, H] are the largest softmax inputs of the step's forwards,
    scale included, over all micro-batches and processes. Returns gamma [L, H], 1
    where no head was clipped. A non-finite maximum is an error: it must be
    caught before weights are touched.
    """
    if max_scores.shape[0] != len(groups):
        raise ValueError(f"qk_clip: saw maxima for {max_scores.shape[0]} layers, expected {len(groups)}")
    if not torch.isfinite(max_scores).all():
        raise ValueError("qk_clip: saw a non-finite maximum score; the step must be skipped before clipping")
    gamma = torch.where(max_scores > tau, tau / max_scores, 1.0)
    for group, layer_gamma in zip(groups, gamma, strict=True):
        if bool((layer_gamma < 1).any()):
            for rows in group.rows:
                _scale_rows_(rows, layer_gamma, placement)
    return gamma


def _scale_rows_(rows: QKRows, gamma: Tensor, placement: Placement) -> None:
    """Row by row, so that a part of the weight is scaled as the whole would be; gamma [H]."""
    width = rows.weight.shape[1]
    for weight, first_row in _rows(placement.local(rows.weight), placement.first_element(rows.weight), width):
        place = torch.arange(len(weight), device=gamma.device) + first_row
        inside = place % rows.per_head
        factor = gamma[place // rows.per_head] ** rows.power
        chosen = (inside >= rows.first) & (inside < rows.last) & (factor < 1)
        weight[chosen] *= factor[chosen, None].to(weight.dtype)


def _rows(run: Tensor, first: int, width: int) -> list[tuple[Tensor, int]]:
    """A run of a weight as [rows, at most `width`], each with its first row: one piece, or the cut rows by themselves.

    `first` is the run's first element in the weight; a flat run may begin and end within a row.
    """
    if run.ndim == 2:
        return [(run, first // width)]
    head = min(-first % width, len(run))
    body = (len(run) - head) // width * width
    begin, middle, end = run.split([head, body, len(run) - head - body])
    pieces = [(begin[None], first), (middle.view(-1, width), first + head), (end[None], first + head + body)]
    return [(piece, place // width) for piece, place in pieces if piece.numel()]
