"""Cutting long texts into documents at natural boundaries, before the split.

A play, a Bible book or a long module is one text but too coarse for a
document-level split: a held-out sample of 256 KiB would be two plays. So texts
are cut into parts of at most `limit` characters, preferring an act over a
scene over a paragraph (or a top-level definition in code). Invariant: the
parts join to the text. What it means for leakage: parts of one work may lie on
both sides of the split, so validation measures new text of known works (names,
style), not new works; text itself is never shared (see `dedup`).
"""

from __future__ import annotations

import re

MAX_DOCUMENT_CHARS = 32_000
MIN_DOCUMENT_CHARS = 1_000
PARTS_WANTED = 20  # a small domain is cut finer, so that a tenth of it can be held out

# Strongest first; a part begins where the pattern matches.
BOUNDARIES = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"^(?:ACT|Act) [IVX]+\b|^#+ |^(?:CHAPTER|Chapter)\b",
        r"^(?:SCENE|Scene)\b|(?<=\n\n)(?:@|class |def |async def )|^[IVXLC]+\.?$",
        r"(?<=\n\n)(?=\S)",
        r"(?<=\n)",
        r"(?<=\s)",
    )
)


def limit_for(total_chars: int) -> int:
    """Longest part in a domain of `total_chars`: the maximum from 640,000 characters on, less below."""
    return max(MIN_DOCUMENT_CHARS, min(MAX_DOCUMENT_CHARS, total_chars // PARTS_WANTED))


def cut(text: str, limit: int = MAX_DOCUMENT_CHARS) -> list[str]:
    """Parts of at most `limit` characters that join to `text`; each at least half of it but the last."""
    parts = []
    start = 0
    while len(text) - start > limit:
        end = _boundary(text, start + limit // 2, start + limit)
        parts.append(text[start:end])
        start = end
    parts.append(text[start:])
    return parts


def _boundary(text: str, low: int, high: int) -> int:
    """The last match of the strongest pattern in (low, high]; `high` where nothing matches."""
    for pattern in BOUNDARIES:
        last = None
        for match in pattern.finditer(text, low + 1, high):
            last = match.start()
        if last is not None:
            return last
    return high
