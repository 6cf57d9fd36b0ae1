"""Duplicates: exact ones by hash, near ones by MinHash, and leakage into validation.

All three look at the same thing: the set of hashed 5-word shingles of the
lower-cased words, so that layout and punctuation do not matter. MinHash with
banding only proposes pairs; a pair is dropped on its exact Jaccard similarity.
Leakage is decided exactly, by containment. Everything is numpy over bytes,
about a second per 10 MB. Left out: duplicated passages inside unlike documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHINGLE_WORDS = 5
NEAR_JACCARD = 0.7  # at least this similar: the later document is dropped
LEAK_SHARE = 0.5  # of a validation document's shingles, or of the training document's own
NUM_HASHES = 96
BAND_ROWS = 4  # 24 bands of 4: a pair at Jaccard 0.7 is proposed with probability 0.9986

_U64 = np.uint64
_rng = np.random.default_rng(20250728)
_MULTIPLIERS = _rng.integers(0, 2**63, NUM_HASHES, dtype=np.uint64) * _U64(2) + _U64(1)
_OFFSETS = _rng.integers(0, 2**63, NUM_HASHES, dtype=np.uint64)
_BYTE_VALUES = _rng.integers(1, 2**63, 256, dtype=np.uint64)
_WORD_POWERS = np.cumprod(np.full(SHINGLE_WORDS, 0x9E3779B97F4A7C15, dtype=np.uint64))
_LETTER_POWERS = np.cumprod(np.full(64, 0xD6E8FEB86659FD93, dtype=np.uint64))

# Letters to lower case, digits and non-ASCII bytes as they are, the rest to 0 (no word).
_FOLD = np.array([b if b >= 128 or chr(b).isalnum() else 0 for b in bytes(range(256)).lower()], dtype=np.uint8)


def shingles(text: str) -> np.ndarray:
    """Sorted distinct uint64 hashes of all runs of `SHINGLE_WORDS` words (of all words, where fewer)."""
    letters = _FOLD[np.frombuffer(text.encode(), dtype=np.uint8)]
    inside = letters != 0
    begins = np.flatnonzero(inside & ~np.concatenate(([False], inside[:-1])))
    if not len(begins):
        return np.zeros(0, dtype=np.uint64)
    at = np.flatnonzero(inside)
    first = np.searchsorted(at, begins)
    word_of = np.repeat(np.arange(len(begins)), np.diff(np.append(first, len(at))))
    place = np.arange(len(at)) - first[word_of]
    words = np.add.reduceat(_BYTE_VALUES[letters[at]] * _LETTER_POWERS[place % 64], first)
    words ^= words >> _U64(29)
    count = max(1, len(words) - SHINGLE_WORDS + 1)
    runs = np.zeros(count, dtype=np.uint64)
    for offset in range(min(SHINGLE_WORDS, len(words))):
        runs += words[offset : offset + count] * _WORD_POWERS[offset]
    runs = (runs ^ (runs >> _U64(31))) * _U64(0xBF58476D1CE4E5B9)
    return np.unique(runs ^ (runs >> _U64(32)))


def signature(hashes: np.ndarray) -> np.ndarray:
    """[NUM_HASHES] uint64 MinHash of a shingle set."""
    out = np.empty(NUM_HASHES, dtype=np.uint64)
    for index in range(NUM_HASHES):
        out[index] = (hashes * _MULTIPLIERS[index] + _OFFSETS[index]).min()
    return out


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Size of the intersection over size of the union, of two sorted distinct arrays."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - shared
    return shared / union if union else 1.0


@dataclass(frozen=True)
class Dedup:
    """Indices kept, in order, and which kept document each dropped one repeats."""

    kept: tuple[int, ...]
    exact: dict[int, int]
    near: dict[int, int]


def find_duplicates(texts: Sequence[str]) -> Dedup:
    """Exact duplicates (up to white space) and near-duplicates; the first of each kind is kept."""
    exact: dict[int, int] = {}
    near: dict[int, int] = {}
    kept: list[int] = []
    by_hash: dict[bytes, int] = {}
    by_band: dict[tuple[int, bytes], list[int]] = {}
    for index, text in enumerate(texts):
        key = hashlib.sha256(" ".join(text.split()).encode()).digest()
        if key in by_hash:
            exact[index] = by_hash[key]
            continue
        by_hash[key] = index
        original = _near_original(index, texts, by_band)
        if original is None:
            kept.append(index)
        else:
            near[index] = original
    return Dedup(tuple(kept), exact, near)


def _near_original(index: int, texts: Sequence[str], by_band: dict[tuple[int, bytes], list[int]]) -> int | None:
    """The kept document that this one nearly repeats; where there is none, this one is entered in the bands."""
    own = shingles(texts[index])
    if not len(own):
        return None
    bands = signature(own).reshape(-1, BAND_ROWS)
    keys = [(number, band.tobytes()) for number, band in enumerate(bands)]
    candidates = sorted({other for key in keys for other in by_band.get(key, ())})
    for other in candidates:
        if jaccard(own, shingles(texts[other])) >= NEAR_JACCARD:
            return other
    for key in keys:
        by_band.setdefault(key, []).append(index)
    return None


def find_leaks(training: Sequence[str], validation: Sequence[str]) -> list[int]:
    """Indices of training texts that share at least `LEAK_SHARE` with a validation text.

    Counted both ways: of the validation text's shingles, and of the training text's own that
    occur anywhere in validation. Exact, so cut points and insertions do not hide a copy.
    """
    held = [shingles(text) for text in validation]
    if not held:
        return []
    sizes = np.array([max(1, len(hashes)) for hashes in held])
    owners = np.repeat(np.arange(len(held)), [len(hashes) for hashes in held])
    pool = np.concatenate(held)
    order = np.argsort(pool, kind="stable")
    pool, owners = pool[order], owners[order]
    leaks = []
    for index, text in enumerate(training):
        own = shingles(text)
        left, right = np.searchsorted(pool, own, "left"), np.searchsorted(pool, own, "right")
        counts = right - left
        if not counts.any():
            continue
        total = int(counts.sum())
        within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
        shared = np.bincount(owners[np.repeat(left, counts) + within], minlength=len(held))
        if np.count_nonzero(counts) >= LEAK_SHARE * len(own) or (shared >= LEAK_SHARE * sizes).any():
            leaks.append(index)
    return leaks
