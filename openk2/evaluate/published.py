"""K2's published figures, to stand beside ours. The checkpoint's variant chooses the column; they are never mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PUBLISHED_PATH = Path(__file__).with_name("published.json")


def published_figure(task: str, variant: str) -> dict[str, Any] | None:
    """{"column", "value" as a fraction, "benchmark", "shots", "source"} or None where K2 published nothing.

    `benchmark` may name a subset (MATH-500 is 500 problems of MATH's test part): then the figure is
    beside ours for orientation, not for subtraction.
    """
    table = json.loads(PUBLISHED_PATH.read_text(encoding="utf-8"))
    figure = table[variant]["figures"].get(task)
    if figure is None:
        return None
    return {
        "column": table[variant]["column"],
        "value": figure["percent"] / 100,
        "benchmark": figure["benchmark"],
        "shots": figure["shots"],
        "source": table["source"],
    }
