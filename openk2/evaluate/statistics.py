"""Estimates with their uncertainty, and the rules for comparing them.

Every figure that evaluation reports is an `Estimate`: a value, the number of
items behind it and its standard error. NaN means "not defined" (no items, or
one item and hence no spread) and never silently becomes 0.

Leaves out: bootstraps and corrections for many comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

Z_95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value over `n` items with its standard error, in the value's own unit."""

    value: float
    n: int
    stderr: float

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON, which has no NaN: an undefined figure is null."""
        return {"value": finite(self.value), "n": self.n, "stderr": finite(self.stderr)}


def finite(value: float) -> float | None:
    """The value, or None where it is NaN or infinite."""
    return value if math.isfinite(value) else None


def proportion(successes: int, n: int) -> Estimate:
    """A rate and its binomial standard error sqrt(p (1 - p) / n).

    At p = 0 or 1 that error is 0, which says nothing about how sure one may be: read `wilson` there.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"proportion: saw {successes} successes of {n}, expected 0 <= successes <= n")
    if n == 0:
        return Estimate(math.nan, 0, math.nan)
    p = successes / n
    return Estimate(p, n, math.sqrt(p * (1.0 - p) / n))


def wilson(rate: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a rate over n items; 95% by default (Wilson 1927). (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    spread = z * math.sqrt(rate * (1.0 - rate) / n + (z / (2 * n)) ** 2)
    scale = 1.0 + z * z / n
    centre = rate + z * z / (2 * n)
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def mean(values: Sequence[float]) -> Estimate:
    """The mean and s / sqrt(n), s being the sample standard deviation (n - 1)."""
    n = len(values)
    if n == 0:
        return Estimate(math.nan, 0, math.nan)
    average = math.fsum(values) / n
    if n == 1:
        return Estimate(average, 1, math.nan)
    variance = math.fsum((value - average) ** 2 for value in values) / (n - 1)
    return Estimate(average, n, math.sqrt(variance / n))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """sum(numerators) / sum(denominators) over n clusters, with the linearised standard error.

    For bits per byte: a cluster is a document, whose tokens are far from independent of each other.
    """
    n, total = len(numerators), math.fsum(denominators)
    if n == 0 or total == 0:
        return Estimate(math.nan, n, math.nan)
    value = math.fsum(numerators) / total
    if n == 1:
        return Estimate(value, 1, math.nan)
    residuals = math.fsum((a - value * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    return Estimate(value, n, math.sqrt(residuals * n / (n - 1)) / total)


def paired_difference(after: Sequence[float], before: Sequence[float]) -> Estimate:
    """Mean of after[i] - before[i]: two systems on the same items in the same order."""
    if len(after) != len(before):
        raise ValueError(
            f"paired difference: saw {len(after)} and {len(before)} results, expected the same items in both lists"
        )
    return mean([a - b for a, b in zip(after, before, strict=True)])


def difference(after: Estimate, before: Estimate) -> Estimate:
    """after - before for results on different items; `paired_difference` is sharper where the items are shared."""
    return Estimate(after.value - before.value, min(after.n, before.n), math.hypot(after.stderr, before.stderr))


def beyond_two_standard_errors(change: Estimate) -> bool:
    """Whether a difference is above zero by more than two standard errors. Undefined errors prove nothing."""
    return change.value > 2.0 * change.stderr


def minimal_detectable_difference(
    n: int, rate: float = 0.5, *, power: float = 0.8, significance: float = 0.05
) -> float:
    """The smallest true gap between two rates that two independent sets of n items would show.

    (z(1 - significance / 2) + z(power)) * sqrt(2 p (1 - p) / n), the usual two-sided normal approximation
    around `rate`. What is smaller than this should not be read off a pair of runs of this size.
    """
    if n < 1 or not 0.0 <= rate <= 1.0:
        raise ValueError(
            f"minimal detectable difference: saw n {n} and rate {rate}, expected n >= 1 and 0 <= rate <= 1"
        )
    z = NormalDist().inv_cdf(1.0 - significance / 2.0) + NormalDist().inv_cdf(power)
    return z * math.sqrt(2.0 * rate * (1.0 - rate) / n)
