"""What the engine reads next: which tokens of which sequences.

Running sequences go first, each with the token it sampled last; what is left
of the step's tokens goes to prompts, in pieces, oldest first. The pieces are
small while more sequences wait for their next token than for their first one:
each such piece delays all of them. Where no block is
free, beginnings that nobody uses are forgotten, then the youngest sequence
gives its blocks up and waits to be read again.
Invariants: a sequence's blocks cover the tokens it is about to read; no
sequence waits for one that came after it, save one whose beginning another is
reading at this moment, which waits to share it.
"""

from __future__ import annotations

import bisect
from collections import deque
from typing import NamedTuple

from openk2.engine.block_pool import BLOCK, BlockPool
from openk2.engine.prefix_tree import PrefixTree
from openk2.engine.sequence import Sequence, Status

WORTH_WAITING = 16  # tokens that another sequence is reading right now


class Piece(NamedTuple):
    """Tokens `first` to `last` of a sequence."""

    sequence: Sequence
    first: int
    last: int

    @property
    def predicts(self) -> bool:
        """Whether the next token can be sampled after it."""
        return self.last == len(self.sequence.tokens)


class Copy(NamedTuple):
    """Rows to be copied from one block into another before anything is read."""

    source: int
    target: int
    num_rows: int


class Scheduler:
    """Waiting and running sequences of one block pool."""

    def __init__(
        self, pool: BlockPool, tree: PrefixTree, *, max_running: int, step_tokens: int, beside_tokens: int
    ) -> None:
        self.pool, self.tree, self.max_running = pool, tree, max_running
        self.step_tokens, self.beside_tokens = step_tokens, beside_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in the order in which they were admitted

    def schedule(self) -> tuple[list[Piece], list[Copy]]:
        """The next pieces, at least one where anything is left to do."""
        pieces: list[Piece] = []
        left = room = self._room()
        for sequence in sorted(self.running, key=lambda s: s.num_pending):
            if left and sequence.status is Status.RUNNING:  # a younger one may just have lost its blocks
                last = min(sequence.num_computed + left, len(sequence.tokens))
                if self._cover(sequence, last):
                    pieces.append(Piece(sequence, sequence.num_computed, last))
                    left -= last - sequence.num_computed
        pieces = [piece for piece in pieces if piece.sequence.status is Status.RUNNING]
        left = room - sum(piece.last - piece.first for piece in pieces)
        return pieces, self._admit(pieces, left) if self.waiting else []

    def admit_alone(self, sequence: Sequence) -> None:
        """Blocks for all tokens of a sequence that is read outside `schedule`, nothing of it taken from the tree."""
        self._start(sequence, [], 0)
        if not self._cover(sequence, len(sequence.tokens)):
            self.waiting.remove(sequence)
            raise RuntimeError(f"engine: saw too few free blocks for {len(sequence.tokens)} tokens")

    def release(self, sequence: Sequence) -> None:
        """Give up a running sequence's blocks; what they hold is remembered in the tree."""
        self.running.remove(sequence)
        self.tree.insert(sequence.tokens[: sequence.num_computed], sequence.blocks)
        for block in sequence.blocks:
            self.pool.release(block)
        sequence.blocks, sequence.num_computed = [], 0

    def _room(self) -> int:
        """Tokens of the next step."""
        for_next = sum(sequence.num_pending == 1 for sequence in self.running)
        for_first = len(self.running) - for_next + len(self.waiting)
        return min(self.step_tokens, for_next + self.beside_tokens) if for_next >= for_first else self.step_tokens

    def _cover(self, sequence: Sequence, last: int) -> bool:
        """Blocks for the first `last` tokens of a running sequence; false where it lost its own instead."""
        while len(sequence.blocks) * BLOCK < last:
            block = self._block()
            if block is not None:
                sequence.blocks.append(block)
                continue
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _block(self) -> int | None:
        block = self.pool.take()
        if block is None and self.tree.evict(max(1, self.pool.size // 64)):
            block = self.pool.take()
        return block

    def _new(self, wanted: int) -> list[int] | None:
        """So many blocks, or None."""
        taken: list[int] = []
        while len(taken) < wanted:
            block = self._block()
            if block is None:
                for taken_before in taken:
                    self.pool.release(taken_before)
                return None
            taken.append(block)
        return taken

    def _preempt(self, sequence: Sequence) -> None:
        self.release(sequence)
        sequence.status = Status.WAITING
        sequence.num_preempted += 1
        self.waiting.appendleft(sequence)

    def _admit(self, pieces: list[Piece], left: int) -> list[Copy]:
        """Let waiting sequences run while `left` tokens and blocks for them last, without taking any from others."""
        copies: list[Copy] = []
        later: list[Sequence] = []
        while self.waiting and left and len(self.running) < self.max_running:
            sequence = self.waiting.popleft()
            blocks, partial, known = self.tree.match(sequence.tokens, len(sequence.tokens) - 1)
            if self._being_read(sequence) >= known + WORTH_WAITING:
                later.append(sequence)
                continue
            for block in (*blocks, *(() if partial is None else (partial,))):
                self.pool.retain(block)
            last = min(known + left, len(sequence.tokens))
            taken = self._new(-(-last // BLOCK) - len(blocks))
            if partial is not None:
                if taken is not None:
                    copies.append(Copy(partial, taken[0], known - len(blocks) * BLOCK))
                self.pool.release(partial)
                if taken is None:  # perhaps for want of this very block: what it holds can be read again
                    known = len(blocks) * BLOCK
                    last = min(known + left, len(sequence.tokens))
                    taken = self._new(-(-last // BLOCK) - len(blocks))
            if taken is None:
                for block in blocks:
                    self.pool.release(block)
                self.waiting.appendleft(sequence)
                break
            self._start(sequence, [*blocks, *taken], known)
            pieces.append(Piece(sequence, known, last))
            left -= last - known
        self.waiting.extendleft(reversed(later))
        return copies

    def _start(self, sequence: Sequence, blocks: list[int], known: int) -> None:
        sequence.status, sequence.blocks, sequence.num_computed = Status.RUNNING, blocks, known
        if sequence.num_preempted == 0:
            sequence.num_cached = known
        self.running.append(sequence)

    def _being_read(self, sequence: Sequence) -> int:
        """How many of its first tokens a running sequence has in common with it in a prompt not read to its end yet."""
        shared = 0
        for other in self.running:
            length = len(other.request.prompt)
            if other.num_computed < length and other.tokens[0] == sequence.tokens[0]:
                shared = max(shared, _common(other.tokens[:length], sequence.tokens))
        return shared


def _common(left: list[int], right: list[int]) -> int:
    """How many tokens they share from the first on: the longest equal beginning, by bisection."""
    length = min(len(left), len(right))
    return bisect.bisect_left(range(1, length + 1), True, key=lambda n: left[:n] != right[:n])
