"""Choosing tokens from logits: temperature, top-p, a random stream of its own for each sequence."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Sampler:
    """Draws for the sequences of one call.

    Sequence i uses the counter-based stream (seed, i), so what it draws depends
    neither on its company nor on when other sequences end.
    """

    def __init__(self, num_sequences: int, max_draws: int, *, temperature: float, top_p: float, seed: int) -> None:
        if not (temperature >= 0 and 0 < top_p <= 1):
            raise ValueError(
                f"sampler: saw temperature {temperature} and top_p {top_p}, "
                "expected temperature at least 0 and top_p above 0 and at most 1"
            )
        self.temperature, self.top_p = temperature, top_p
        streams = [np.random.Generator(np.random.Philox(key=[seed, i])) for i in range(num_sequences)]
        self._uniform = torch.from_numpy(np.stack([stream.random(max_draws) for stream in streams]))

    def __call__(
        self, logits: Tensor, sequences: Tensor, draw: int, allowed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """logits [B, V] of `sequences` int [B], whose token number `draw` this is; bool `allowed` [B, V], none: all.

        Returns the token ids [B] and all log-probabilities at temperature 1, fp32 [B, V], whatever is allowed.
        """
        log_probs = logits.float().log_softmax(-1)
        open_to = log_probs if allowed is None else log_probs.masked_fill(~allowed, -torch.inf)
        return open_to.argmax(-1) if self.temperature == 0 else self._draw(open_to, sequences, draw), log_probs

    def _draw(self, log_probs: Tensor, sequences: Tensor, draw: int) -> Tensor:
        probabilities = (log_probs / self.temperature).softmax(-1).double()
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        cumulative = ordered.cumsum(-1)
        if self.top_p < 1:  # keep the smallest set whose mass reaches top_p
            kept = ordered.masked_fill(cumulative - ordered >= self.top_p, 0.0)
            cumulative = kept.cumsum(-1)
        threshold = self._uniform[sequences, draw, None] * cumulative[:, -1:]
        place = torch.searchsorted(cumulative, threshold, right=True).clamp(max=log_probs.shape[-1] - 1)
        return order.gather(1, place).squeeze(1)
