"""What the server's benchmark makes of a stream that it has noted."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from serve import Answer


def test_an_event_counts_when_it_is_whole() -> None:
    parts = [
        (0.1, b'data: {"choices": [{"text": "a"}]}\n\ndata: {"cho'),
        (0.2, b'ices": [{"text": "b"}], "usage": null}\n\n: waiting\n\n'),
        (0.3, b'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\ndata: [DONE]\n\n'),
    ]
    assert Answer.of(parts) == Answer(2, [0.1, 0.2])
    assert Answer.of([]) == Answer(0, [])
