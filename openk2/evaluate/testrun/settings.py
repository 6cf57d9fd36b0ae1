"""How a test run asks."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Seconds throughout. A seed is sent as seed + sample; None sends none."""

    samples: int = 1  # answers to each prompt
    seed: int | None = None
    concurrency: int = 4  # requests at a time, to each target
    per_minute: float | None = None  # requests begun a minute at most, to each target
    timeout: float = 600.0  # for a whole answer
    attempts: int = 6  # at one answer
    backoff: float = 1.0  # before the second attempt; doubled before each further one
    longest_wait: float = 120.0  # that a server may ask for

    def __post_init__(self) -> None:
        for name in ("samples", "concurrency", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"testrun.{name}: saw {getattr(self, name)}, expected at least 1")
        for name in ("timeout", "per_minute", "backoff", "longest_wait"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"testrun.{name}: saw {value}, expected a number above 0")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"testrun.seed: saw {self.seed}, expected at least 0")
