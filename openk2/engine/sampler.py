"""Choosing tokens from logits: penalties, temperature, top-k, top-p, min-p; a random stream for each sequence.

Invariants: what a sequence draws depends on its own logits, parameters, seed
and stream, never on its company or on when it was interrupted. Log-probabilities
are the model's, at temperature 1, whatever is penalised or forbidden. They are
made by the kernel that training uses, so that in batch-invariant arithmetic
both have the same bits.
"""

from __future__ import annotations

from collections import Counter, abc
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from openk2.engine.sequence import Sequence
from openk2.ops.fused import fusion_on_this_thread, normalise_logits_
from openk2.protocols import SamplingParams

GREEDY = 1e-4  # temperatures below it: the likeliest token has all the mass that numbers can hold


class Draw(NamedTuple):
    """Of each row: the token drawn, all log-probabilities [B, V] fp32."""

    tokens: list[int]
    log_probs: Tensor


def check(params: SamplingParams) -> None:
    """Raises `ValueError` for parameters that mean nothing."""
    ranges = (
        ("max_new_tokens", params.max_new_tokens >= 1, "at least 1"),
        ("temperature", params.temperature >= 0, "at least 0"),
        ("top_p", 0 < params.top_p <= 1, "above 0 and at most 1"),
        ("top_k", params.top_k >= 0, "at least 0 (0: off)"),
        ("min_p", 0 <= params.min_p <= 1, "0 to 1 (0: off)"),
        ("presence_penalty", -2 <= params.presence_penalty <= 2, "-2 to 2"),
        ("frequency_penalty", -2 <= params.frequency_penalty <= 2, "-2 to 2"),
        ("repetition_penalty", 0.01 <= params.repetition_penalty <= 10, "0.01 to 10 (1: off)"),
        ("seed", 0 <= params.seed < 2**64, "0 to 2**64 - 1"),
        ("top_log_probs", params.top_log_probs >= 0, "at least 0"),
    )
    for name, holds, expected in ranges:
        if not holds:
            raise ValueError(f"sampling: saw {name} {getattr(params, name)}, expected {expected}")


def stream(seed: int, number: int) -> np.random.Generator:
    """The uniform numbers that one sequence draws with, one a token."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)))


def sample(logits: Tensor, sequences: abc.Sequence[Sequence]) -> Draw:
    """The next token of each sequence from its logits [B, V]."""
    with fusion_on_this_thread(False):  # of so few rows the kernels cost less than their calls
        normaliser, _ = normalise_logits_(logits.clone())
    logits = logits.float()
    for row in (~normaliser.isfinite()).nonzero().flatten().tolist():
        sequences[row].fail(FloatingPointError("engine: saw logits that are no numbers; the weights have diverged"))
        logits[row], normaliser[row] = 0.0, 0.0
    log_probs = logits - normaliser[:, None]
    logits = _adjusted(logits, sequences)
    tokens = logits.argmax(-1)
    drawing = [row for row, sequence in enumerate(sequences) if sequence.request.params.temperature >= GREEDY]
    if drawing:
        uniform = torch.tensor([sequences[row].random.random() for row in drawing], dtype=torch.float64)
        params = [sequences[row].request.params for row in drawing]
        tokens[drawing] = _draw(logits if len(drawing) == len(logits) else logits[drawing], params, uniform)
    return Draw(tokens.tolist(), log_probs)


def _adjusted(logits: Tensor, sequences: abc.Sequence[Sequence]) -> Tensor:
    """Logits [B, V] with penalties, -inf where a grammar forbids; the same tensor where nothing changes."""
    changed = [row for row, sequence in enumerate(sequences) if sequence.constraint or _penalised(sequence)]
    if not changed:
        return logits
    logits = logits.clone()
    for row in changed:
        sequence = sequences[row]
        if _penalised(sequence):
            _penalise(logits[row], sequence)
        allowed = sequence.allowed()
        if allowed is not None:
            logits[row].masked_fill_(torch.from_numpy(~allowed), -torch.inf)
    return logits


def _penalised(sequence: Sequence) -> bool:
    params = sequence.request.params
    return bool(params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1)


def _penalise(logits: Tensor, sequence: Sequence) -> None:
    """In place, logits [V]."""
    params = sequence.request.params
    if params.repetition_penalty != 1:
        seen = torch.from_numpy(np.union1d(sequence.prompt_ids, np.array(sequence.ids, dtype=np.int64)))
        found = logits[seen]
        logits[seen] = torch.where(found > 0, found / params.repetition_penalty, found * params.repetition_penalty)
    counts = Counter(sequence.ids)
    if counts:
        ids, times = torch.tensor(list(counts)), torch.tensor(list(counts.values()), dtype=logits.dtype)
        logits[ids] -= params.presence_penalty + params.frequency_penalty * times


def _draw(logits: Tensor, params: abc.Sequence[SamplingParams], uniform: Tensor) -> Tensor:
    """A token for each row of logits [R, V] by the inverse of its cumulative mass, in the vocabulary's order."""
    mass = (logits / _column([p.temperature for p in params])).softmax(-1).double()
    if any(p.top_k or p.min_p or p.top_p < 1 for p in params):
        mass = _filtered(mass, params)
    cumulative = mass.cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    places = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
    last = torch.searchsorted(cumulative, total)  # the last with any mass: rounding may put a threshold at the total
    return torch.minimum(places, last).squeeze(1)


def _filtered(mass: Tensor, params: abc.Sequence[SamplingParams]) -> Tensor:
    """Probabilities [R, V], 0 where top-k, min-p or top-p leave a token out."""
    ordered, order = mass.sort(dim=-1, descending=True, stable=True)
    vocabulary = mass.shape[1]
    rank = torch.arange(vocabulary)
    beyond = (rank >= _column([p.top_k or vocabulary for p in params])) | (
        ordered < ordered[:, :1] * _column([p.min_p for p in params])
    )
    ordered = ordered.masked_fill(beyond, 0.0)
    before = ordered.cumsum(-1) - ordered
    top_p = _column([p.top_p for p in params])
    beyond = (top_p < 1) & (before >= top_p * ordered.sum(-1, keepdim=True))
    beyond[:, 0] = False  # the likeliest stays, also where top_p rounds to nothing
    return torch.zeros_like(mass).scatter(1, order, ordered.masked_fill(beyond, 0.0))


def _column(values: abc.Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]
