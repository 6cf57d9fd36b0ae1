"""The learning rate's schedule: warm-up, stable, decay."""

from __future__ import annotations

import math

import pytest

from openk2.optim.schedule import wsd


def rates(steps: int, warmup: int, decay: int, final: float) -> list[float]:
    return [wsd(step, steps=steps, warmup_steps=warmup, decay_steps=decay, final_ratio=final) for step in range(steps)]


def test_three_phases():
    found = rates(100, 10, 40, 0.1)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[10:60] == [1.0] * 50
    cosine = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step + 1) / 40)) for step in range(40)]
    assert found[60:] == pytest.approx(cosine)
    assert found[79] == pytest.approx(0.55) and found[-1] == pytest.approx(0.1)


def test_it_rises_and_then_falls_and_is_never_zero_before_its_end():
    for steps, warmup, decay, final in ((50, 7, 20, 0.0), (9, 4, 5, 0.3), (30, 0, 30, 0.1), (1, 0, 0, 0.1)):
        found = rates(steps, warmup, decay, final)
        assert all(a < b for a, b in zip(found[:warmup], found[1:warmup], strict=False))
        assert all(a >= b for a, b in zip(found[warmup:], found[warmup + 1 :], strict=False))
        assert max(found) == 1.0 or decay == steps
        assert all(rate > 0 for rate in found[:-1])
        assert found[-1] == pytest.approx(final if decay else 1.0)
