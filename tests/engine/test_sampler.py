"""The sampler by itself: what it keeps, how often it draws what, what it calls a log-probability."""

from __future__ import annotations

from collections import abc
from typing import Any

import numpy as np
import pytest
import torch

from openk2.engine import sampler
from openk2.engine.sequence import Request, Sequence
from openk2.protocols import SamplingParams

ROW = torch.tensor([1.2, -0.5, 0.3, 2.0, -3.0, 0.3])
# Chi-square with 5 degrees of freedom exceeds this once in 10,000 correct samplers; the draws are fixed by the seed.
CHI_SQUARE_5 = 25.7


class Only:
    """A constraint that allows some tokens."""

    hopeless = done = False

    def __init__(self, tokens: abc.Sequence[int]) -> None:
        self._mask = np.isin(np.arange(len(ROW)), tokens)

    def mask(self) -> np.ndarray:
        return self._mask

    def accept(self, token: int) -> int:
        return token


def make(count: int, prompt: abc.Sequence[int] = (0,), ids: abc.Sequence[int] = (), **changes: Any) -> list[Sequence]:
    """Sequences that have sampled `ids`, each with a stream of its own."""
    only = changes.pop("only", None)
    params = SamplingParams(**({"temperature": 1.0, "seed": 0} | changes))
    return [
        Sequence(
            Request(tuple(prompt), params, number),
            limit=8,
            constraint=Only(only) if only else None,
            random=sampler.stream(params.seed, number),
            tokens=[*prompt, *ids],
        )
        for number in range(count)
    ]


def draws(count: int, row: torch.Tensor = ROW, **changes: Any) -> torch.Tensor:
    """One token each for `count` sequences with the same logits."""
    return torch.tensor(sampler.sample(row.expand(count, -1), make(count, **changes)).tokens)


def chi_square(found: torch.Tensor, expected: torch.Tensor) -> float:
    counts, wanted = found.bincount(minlength=len(expected)).double(), expected.double() * len(found)
    return float(((counts - wanted).square() / wanted).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_temperature_says(temperature):
    found = draws(4000, temperature=temperature)
    assert chi_square(found, (ROW / temperature).softmax(0)) < CHI_SQUARE_5
    assert chi_square(found, (ROW / (temperature * 1.2)).softmax(0)) > CHI_SQUARE_5  # and would show another one


def test_one_stream_gives_such_draws_too():
    sequences = make(1, seed=5)
    found = torch.tensor([sampler.sample(ROW[None], sequences).tokens[0] for _ in range(4000)])
    assert chi_square(found, ROW.softmax(0)) < CHI_SQUARE_5


HALVES = torch.tensor([0.125, 0.5, 0.125, 0.25]).log()  # exact in binary, so that the edges are


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_p": 0.1}, {1}),
        ({"top_p": 0.5}, {1}),
        ({"top_p": 0.51}, {1, 3}),
        ({"top_p": 0.75}, {1, 3}),
        ({"top_p": 0.76}, {0, 1, 3}),  # of two equally likely ones the first
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 3}, {0, 1, 3}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"min_p": 0.6}, {1}),
        ({"min_p": 0.49}, {1, 3}),
        ({"min_p": 0.24}, {0, 1, 2, 3}),
        ({"top_k": 2, "top_p": 0.6}, {1}),  # two thirds of what top-k leaves
        ({"min_p": 0.3, "top_p": 0.7}, {1, 3}),
    ],
    ids=str,
)
def test_filters_keep_what_they_say(settings, kept):
    assert set(draws(600, HALVES, **settings).tolist()) == kept


def test_what_is_kept_is_renormalised():
    assert float((draws(3000, HALVES, top_p=0.75) == 1).float().mean()) == pytest.approx(2 / 3, abs=0.03)


def test_sequences_with_different_parameters_draw_together_as_alone():
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 0.0},
        {"top_p": 0.6},
        {"top_k": 2, "temperature": 1.7},
        {"min_p": 0.2},
        {"only": [1, 4]},
        {"presence_penalty": 1.5, "ids": (3, 3)},
    ]
    together = [make(1, **kind)[0] for kind in kinds]
    logits = torch.randn(len(kinds), len(ROW), generator=torch.Generator().manual_seed(1))
    rounds = [sampler.sample(logits, together).tokens for _ in range(20)]
    for row, kind in enumerate(kinds):
        alone = make(1, **kind)
        assert [sampler.sample(logits[row : row + 1], alone).tokens[0] for _ in range(20)] == [r[row] for r in rounds]


def test_penalties_change_the_logits_as_their_definitions_say():
    """Greedy choice flips exactly where the penalised logit falls below the next one."""
    row = torch.tensor([1.0, 0.5, -1.0])
    cases = [
        ({"presence_penalty": 0.4}, (0, 0), 0),
        ({"presence_penalty": 0.6}, (0, 0), 1),
        ({"frequency_penalty": 0.24}, (0, 0), 0),
        ({"frequency_penalty": 0.26}, (0, 0), 1),
        ({"repetition_penalty": 1.9}, (), 0),
        ({"repetition_penalty": 2.1}, (), 1),  # the prompt's token counts
        ({"presence_penalty": 2.0}, (), 0),  # which it does not here
    ]
    for settings, ids, expected in cases:
        [sequence] = make(1, prompt=(0,), ids=ids, temperature=0.0, **settings)
        drawn = sampler.sample(row[None], [sequence])
        assert drawn.tokens == [expected], settings
        torch.testing.assert_close(drawn.log_probs[0], row.log_softmax(0))  # the model's, not the penalised ones
    negative = torch.tensor([-1.0, -1.5, -9.0])
    [sequence] = make(1, prompt=(0,), temperature=0.0, repetition_penalty=1.6)
    assert sampler.sample(negative[None], [sequence]).tokens == [1]  # a negative logit is multiplied


def test_log_probabilities_are_those_at_temperature_one():
    expected = ROW.log_softmax(0)
    for temperature, top_p in ((0.0, 1.0), (0.3, 1.0), (1.5, 0.6)):
        drawn = sampler.sample(ROW.expand(50, -1), make(50, temperature=temperature, top_p=top_p))
        assert drawn.log_probs.dtype == torch.float32
        torch.testing.assert_close(drawn.log_probs, expected.expand(50, -1))


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.5)])
def test_what_is_not_allowed_is_never_drawn(temperature, top_p):
    drawn = sampler.sample(ROW.expand(200, -1), make(200, temperature=temperature, top_p=top_p, only=[0, 2]))
    assert set(drawn.tokens) <= {0, 2}
    torch.testing.assert_close(drawn.log_probs, ROW.log_softmax(0).expand(200, -1))  # of the model, not what is left


def test_temperature_zero_takes_the_largest_and_draws_nothing():
    sequences = make(50, temperature=0.0)
    assert set(sampler.sample(ROW.expand(50, -1), sequences).tokens) == {3}
    assert sequences[0].random.random() == sampler.stream(0, 0).random()


def test_streams_are_named_by_seed_and_sequence():
    """Draw d of sequence i is number d of the counter-based stream (seed, i), whoever else is there."""
    sequences = make(4, seed=9)
    flat = torch.zeros(1, 1000)
    for number in (0, 3):
        uniform = np.random.Generator(np.random.Philox(key=[9, number])).random(3)
        for draw in range(3):
            found = sampler.sample(flat, [sequences[number]]).tokens[0]
            assert found == pytest.approx(uniform[draw] * 1000, abs=1)


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": float("nan")}, "top_p nan"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"top_k": -1}, "top_k -1"),
        ({"min_p": 2.0}, "min_p 2.0"),
        ({"presence_penalty": 3.0}, "presence_penalty 3.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0"),
        ({"seed": -1}, "seed -1"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
    ],
)
def test_settings_without_meaning_are_refused_in_one_line(settings, seen):
    with pytest.raises(ValueError, match=f"sampling: saw {seen}, expected") as caught:
        sampler.check(SamplingParams(**settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "extreme",
    [{"temperature": 5e-324}, {"temperature": 1e-5}, {"repetition_penalty": 0.01}, {"top_p": 5e-324}, {"min_p": 1.0}],
    ids=str,
)
@pytest.mark.parametrize("more", [{}, {"top_k": 1}], ids=str)
def test_the_ends_of_what_is_allowed_draw_tokens_that_there_are(extreme: dict, more: dict) -> None:
    sequences = make(8, prompt=(3, 0), **extreme, **more)
    for params in {sequence.request.params for sequence in sequences}:
        sampler.check(params)
    for logits in (ROW * 0.3, ROW, ROW * 1e4):
        tokens = sampler.sample(logits.repeat(8, 1), sequences).tokens
        if "repetition_penalty" in extreme:
            assert set(tokens) <= {0, 3}  # said before, and made a hundred times likelier
        else:
            assert tokens == [3] * 8


def test_penalties_that_would_leave_numbers_behind_are_refused() -> None:
    with pytest.raises(ValueError, match="repetition_penalty"):
        sampler.check(SamplingParams(repetition_penalty=1e-300))
