"""Learning rate over steps: warm-up, stable, decay (K2's WSD). Never over seconds."""

from __future__ import annotations

import math


def wsd(step: int, *, steps: int, warmup_steps: int, decay_steps: int, final_ratio: float) -> float:
    """Multiplier of the peak rate at `step` (0-based): linear up, 1, then a cosine to `final_ratio`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    decayed = step - (steps - decay_steps)
    if decayed < 0 or decay_steps == 0:
        return 1.0
    share = (decayed + 1) / decay_steps
    return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * share))
