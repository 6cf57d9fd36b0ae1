"""Which tasks are sampled: hard ones more often, so that fewer groups are all right or all wrong.

As K1.5 does: tasks are drawn with a chance proportional to 1 - success rate,
where the rate is a running one, begun by a pass over the pool.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from openk2.protocols import Task

FLOOR = 0.05  # a task that always succeeds is still seen now and then
MEMORY = 0.5  # weight of the newest group's rate


class PromptPool:
    """Tasks and their running success rates."""

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        self.tasks, self._seed = list(tasks), seed
        self.rates = [0.5] * len(self.tasks)

    def draw(self, step: int, count: int) -> list[int]:
        """Indices of `count` different tasks for `step`: a function of seed, step and rates alone."""
        rng = random.Random(f"{self._seed}/{step}")
        # Weighted sampling without replacement: the largest u^(1/w) win (Efraimidis and Spirakis, 2006).
        keys = [rng.random() ** (1 / (1 - rate + FLOOR)) for rate in self.rates]
        return sorted(range(len(keys)), key=lambda index: -keys[index])[:count]

    def record(self, index: int, rate: float) -> None:
        self.rates[index] += MEMORY * (rate - self.rates[index])
