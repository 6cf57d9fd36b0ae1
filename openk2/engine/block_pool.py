"""Blocks of cache rows: who holds which, and which are free.

Invariant: a block is free exactly while nobody holds a reference to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

BLOCK = 64  # tokens


class BlockPool:
    """`size` blocks, numbered from 0."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._references = [0] * size
        self._free = list(range(size - 1, -1, -1))  # the last one given back is taken first: it is in a cache

    @property
    def num_free(self) -> int:
        return len(self._free)

    def references(self, block: int) -> int:
        return self._references[block]

    def take(self) -> int | None:
        """A free block with one reference; None where none is left."""
        if not self._free:
            return None
        block = self._free.pop()
        self._references[block] = 1
        return block

    def retain(self, block: int) -> None:
        assert self._references[block] > 0, f"block {block} is free"
        self._references[block] += 1

    def release(self, block: int) -> None:
        assert self._references[block] > 0, f"block {block} is free"
        self._references[block] -= 1
        if self._references[block] == 0:
            self._free.append(block)

    def check(self, held: Iterable[int]) -> None:
        """`held` names every reference there should be. AssertionError where one is lost, or one too many."""
        expected = Counter(held)
        wrong = [block for block in range(self.size) if self._references[block] != expected[block]]
        assert not wrong, (
            f"cache blocks {wrong[:8]}: references {[self._references[b] for b in wrong[:8]]}, expected "
            + (f"{[expected[b] for b in wrong[:8]]}")
        )
        assert sorted(self._free) == [block for block in range(self.size) if expected[block] == 0], "free list is wrong"
