"""Which cache blocks hold the latents of which beginnings: a radix tree whose edges are blocks.

A node stands for the tokens of one block after those of its ancestors; a block
that is not full yet is a leaf whose first rows are vouched for, and a sequence
that goes on from them takes a copy. Invariants: the tree holds one reference
to each of its blocks; rows a node vouches for never change, since sequences
only write behind them. Left out: moving blocks to disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from openk2.engine.block_pool import BLOCK, BlockPool


@dataclass(eq=False)
class _Node:
    ids: tuple[int, ...]
    block: int
    parent: _Node | None
    children: dict[int, list[_Node]] = field(default_factory=dict)  # by their first id
    last_used: int = 0

    def longest(self, ids: tuple[int, ...]) -> tuple[_Node | None, int]:
        """The child that agrees with the most of `ids` from their first on, and with how many."""
        found = ((node, _common(node.ids, ids)) for node in self.children.get(ids[0], ()))
        return max(found, key=lambda pair: pair[1], default=(None, 0))


class PrefixTree:
    """Beginnings that were read, least recently used ones forgotten first."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._root = _Node((), -1, None)
        self._clock = 0

    def __len__(self) -> int:
        """Blocks it holds."""
        return sum(1 for _ in self._nodes())

    def match(self, tokens: Sequence[int], limit: int) -> tuple[list[int], int | None, int]:
        """What is known of the first `limit` tokens: whole blocks, a block whose first rows go on from there, or None,
        and how many tokens that is together. The blocks are not retained."""
        self._clock += 1
        node, blocks = self._root, list[int]()
        while True:
            ids = tuple(tokens[len(blocks) * BLOCK : min((len(blocks) + 1) * BLOCK, limit)])
            if not ids:
                return blocks, None, len(blocks) * BLOCK
            found, common = node.longest(ids)
            if found is None:
                return blocks, None, len(blocks) * BLOCK
            found.last_used = self._clock
            if common < BLOCK:
                return blocks, found.block, len(blocks) * BLOCK + common
            node = found
            blocks.append(found.block)

    def insert(self, tokens: Sequence[int], blocks: Sequence[int]) -> None:
        """Remember that `blocks` hold the latents of `tokens`; where it is known already, the blocks known stay."""
        self._clock += 1
        node = self._root
        for index, block in enumerate(blocks):
            ids = tuple(tokens[index * BLOCK : (index + 1) * BLOCK])
            if not ids:
                return
            found, common = node.longest(ids)
            if found is not None and common == len(ids):
                found.last_used = self._clock
            elif found is not None and common == len(found.ids):  # not full yet: these go on from it
                self._pool.retain(block)
                self._pool.release(found.block)
                found.ids, found.block, found.last_used = ids, block, self._clock
            else:
                self._pool.retain(block)
                found = _Node(ids, block, node, last_used=self._clock)
                node.children.setdefault(ids[0], []).append(found)
            node = found

    def evict(self, wanted: int) -> int:
        """Forget beginnings that no sequence uses until `wanted` blocks are free of them; returns how many are."""
        freed = 0
        while freed < wanted:
            leaves = [n for n in self._nodes() if not n.children and self._pool.references(n.block) == 1]
            if not leaves:
                break
            for node in sorted(leaves, key=lambda n: n.last_used)[: wanted - freed]:
                self._forget(node)
                freed += 1
        return freed

    def clear(self) -> None:
        for node in list(self._nodes()):
            self._pool.release(node.block)
        self._root.children.clear()

    def blocks(self) -> list[int]:
        """Those it holds a reference to."""
        return [node.block for node in self._nodes()]

    def _forget(self, node: _Node) -> None:
        assert node.parent is not None
        siblings = node.parent.children[node.ids[0]]
        siblings.remove(node)
        if not siblings:
            del node.parent.children[node.ids[0]]
        self._pool.release(node.block)

    def _nodes(self) -> Iterator[_Node]:
        open_nodes = [self._root]
        while open_nodes:
            for children in open_nodes.pop().children.values():
                yield from children
                open_nodes += children


def _common(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """How many ids they share from the first on."""
    if left == right:
        return len(left)
    return next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
