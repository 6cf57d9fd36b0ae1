"""The sampler by itself: what it keeps, how often it draws what, what it calls a log-probability."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from openk2.engine.sampler import Sampler

ROW = torch.tensor([1.2, -0.5, 0.3, 2.0, -3.0, 0.3])
# Chi-square with 5 degrees of freedom exceeds this once in 10,000 correct samplers; the draws are fixed by the seed.
CHI_SQUARE_5 = 25.7


def draws(count: int, **changes: float) -> torch.Tensor:
    """One token each for `count` sequences with the same logits."""
    settings = {"temperature": 1.0, "top_p": 1.0, "seed": 0} | changes
    sampler = Sampler(count, 1, **settings)
    return sampler(ROW.expand(count, -1), torch.arange(count), 0)[0]


def chi_square(found: torch.Tensor, expected: torch.Tensor) -> float:
    counts, wanted = found.bincount(minlength=len(expected)).double(), expected.double() * len(found)
    return float(((counts - wanted).square() / wanted).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_temperature_says(temperature):
    found = draws(4000, temperature=temperature)
    assert chi_square(found, (ROW / temperature).softmax(0)) < CHI_SQUARE_5
    assert chi_square(found, (ROW / (temperature * 1.2)).softmax(0)) > CHI_SQUARE_5  # and would show another one


def test_one_stream_gives_such_draws_too():
    sampler = Sampler(1, 4000, temperature=1.0, top_p=1.0, seed=5)
    found = torch.cat([sampler(ROW[None], torch.tensor([0]), draw)[0] for draw in range(4000)])
    assert chi_square(found, ROW.softmax(0)) < CHI_SQUARE_5


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    """Probabilities .5, .25, .125, .125: exact in binary, so that the edges are."""
    row = torch.tensor([0.125, 0.5, 0.125, 0.25]).log()
    for top_p, kept in ((0.1, {1}), (0.5, {1}), (0.51, {1, 3}), (0.75, {1, 3}), (0.76, {0, 1, 3}), (1.0, {0, 1, 2, 3})):
        sampler = Sampler(600, 1, temperature=1.0, top_p=top_p, seed=1)
        found, _ = sampler(row.expand(600, -1), torch.arange(600), 0)
        assert set(found.tolist()) == kept, top_p
    sampler = Sampler(3000, 1, temperature=1.0, top_p=0.75, seed=1)
    found, _ = sampler(row.expand(3000, -1), torch.arange(3000), 0)
    assert float((found == 1).float().mean()) == pytest.approx(2 / 3, abs=0.03)  # renormalised over what is kept


def test_log_probabilities_are_those_at_temperature_one():
    expected = ROW.log_softmax(0)
    for temperature, top_p in ((0.0, 1.0), (0.3, 1.0), (1.5, 0.6)):
        sampler = Sampler(50, 1, temperature=temperature, top_p=top_p, seed=0)
        _, log_probs = sampler(ROW.expand(50, -1), torch.arange(50), 0)
        assert log_probs.dtype == torch.float32
        torch.testing.assert_close(log_probs, expected.expand(50, -1))


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.5)])
def test_what_is_not_allowed_is_never_drawn(temperature, top_p):
    allowed = torch.zeros(200, len(ROW), dtype=torch.bool)
    allowed[:, [0, 2]] = True
    sampler = Sampler(200, 1, temperature=temperature, top_p=top_p, seed=0)
    found, log_probs = sampler(ROW.expand(200, -1), torch.arange(200), 0, allowed)
    assert set(found.tolist()) <= {0, 2}
    torch.testing.assert_close(log_probs, ROW.log_softmax(0).expand(200, -1))  # of the model, not of what is left


def test_temperature_zero_takes_the_largest_and_draws_nothing():
    assert set(draws(50, temperature=0.0).tolist()) == {3}


def test_streams_are_named_by_seed_and_sequence():
    """Draw d of sequence i is number d of the counter-based stream (seed, i), whoever else is there."""
    sampler = Sampler(4, 3, temperature=1.0, top_p=1.0, seed=9)
    flat = torch.zeros(1, 1000)
    for sequence in (0, 3):
        uniform = np.random.Generator(np.random.Philox(key=[9, sequence])).random(3)
        for draw in range(3):
            found = int(sampler(flat, torch.tensor([sequence]), draw)[0])
            assert found == pytest.approx(uniform[draw] * 1000, abs=1)


def test_settings_without_meaning_are_refused_in_one_line():
    for settings in ({"temperature": -1.0, "top_p": 1.0}, {"temperature": 1.0, "top_p": 0.0}):
        with pytest.raises(ValueError, match="sampler: saw temperature") as caught:
            Sampler(1, 1, seed=0, **settings)
        assert "\n" not in str(caught.value)
    for top_p in (1.5, float("nan")):
        with pytest.raises(ValueError, match="top_p"):
            Sampler(1, 1, temperature=1.0, top_p=top_p, seed=0)
