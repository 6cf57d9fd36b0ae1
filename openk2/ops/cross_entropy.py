"""Log-probabilities of targets under a linear head, without keeping fp32 logits.

What it is: the head product and the log-softmax of one chunk of tokens at a
time. The backward pass needs the probabilities: as exponentials beside their
sums they are kept in the inputs' dtype while they are few, and made again
where they are not. One function serves the pre-training loss, SFT, RL (whose
weights depend on the summed log-probabilities) and scoring. The slow twin is
`reference_log_prob`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from openk2.ops.fused import logits_gradient_, normalise_logits_, wide_dtype

CHUNK_BYTES = 32 << 20  # of a chunk's logits: large products are faster, and more than this gained nothing
CHUNK_ROWS = 256  # but no fewer rows than these
KEEP_BYTES = 512 << 20  # largest probability matrix kept for the backward pass


def _chunks(rows: int, head: Tensor) -> list[slice]:
    """Slices of the rows whose logits are made at a time."""
    step = max(CHUNK_ROWS, CHUNK_BYTES // (head.shape[0] * head.element_size()))
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


class _LinearLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        rows, vocab = hidden.shape[0], head.shape[0]
        keep = ctx.needs_input_grad[0] and rows * vocab * hidden.element_size() <= KEEP_BYTES
        kept = torch.empty(rows, vocab, dtype=hidden.dtype, device=hidden.device) if keep else None
        log_probs, sums = (hidden.new_empty(rows, dtype=wide_dtype(hidden.dtype)) for _ in range(2))
        for chunk in _chunks(rows, head):
            logits = torch.mm(hidden[chunk], head.t(), out=None if kept is None else kept[chunk])
            found = logits.gather(1, targets[chunk, None]).squeeze(1)
            normaliser, sums[chunk] = normalise_logits_(logits)
            log_probs[chunk] = found - normaliser
        ctx.save_for_backward(hidden, head, targets, sums, kept)
        return log_probs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        hidden, head, targets, sums, kept = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros(head.shape, dtype=grad.dtype, device=head.device) if kept is None else None
        for chunk in _chunks(hidden.shape[0], head):
            # The backward pass runs once: kept exponentials become the gradient in place.
            if kept is not None:
                exponentials = kept[chunk]
            else:
                normalise_logits_(exponentials := F.linear(hidden[chunk], head))
            grad_logits = logits_gradient_(exponentials, sums[chunk], targets[chunk], grad[chunk])
            grad_hidden[chunk] = grad_logits @ head
            if grad_head is not None:
                grad_head += grad_logits.t() @ hidden[chunk]
        if grad_head is None:
            return grad_hidden, kept.t() @ hidden, None
        return grad_hidden, grad_head.to(head.dtype), None


def linear_log_prob(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """log softmax(hidden head^T)[target] for hidden [N, D], head [V, D], targets int [N]: fp32 [N]."""
    return cast(Tensor, _LinearLogProb.apply(hidden, head, targets))


def reference_log_prob(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """The slow twin of `linear_log_prob`: whole logits, differentiated by autograd."""
    return F.linear(hidden, head).float().log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
