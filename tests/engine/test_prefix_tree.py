"""The prefix tree against a list of everything that was read."""

from __future__ import annotations

import random

import pytest

from openk2.engine.block_pool import BLOCK, BlockPool
from openk2.engine.prefix_tree import PrefixTree


def sequence(rng: random.Random, known: list[list[int]]) -> list[int]:
    """Tokens that often begin like others: a cut of a known sequence, and a few symbols after it."""
    base = rng.choice(known)[: rng.randrange(4 * BLOCK)] if known and rng.random() < 0.7 else []
    return base + [rng.randrange(3) for _ in range(rng.randrange(1, 2 * BLOCK))]


def agreement(left: list[int], right: list[int]) -> int:
    length = min(len(left), len(right))
    return next((at for at in range(length) if left[at] != right[at]), length)


@pytest.mark.parametrize("seed", range(20))
def test_a_match_is_the_longest_beginning_that_was_read(seed):
    """And the blocks it names hold just these tokens: `rows` remembers what was written where."""
    rng, pool = random.Random(seed), BlockPool(400)
    tree, known, rows = PrefixTree(pool), list[list[int]](), dict[int, list[int]]()
    for _ in range(40):
        tokens = sequence(rng, known)
        blocks, partial, length = tree.match(tokens, len(tokens) - 1)
        longest = max((agreement(tokens[:-1], other) for other in known), default=0)
        assert length == longest
        held = [row for block in blocks for row in rows[block]]
        if partial is not None:
            held += rows[partial][: length - len(held)]
        assert held == tokens[:length] and len(blocks) == length // BLOCK
        for block in blocks:  # read it as the engine would: shared blocks, a copy of the partial one, new ones
            pool.retain(block)
        while len(blocks) * BLOCK < len(tokens):
            block = pool.take()
            assert block is not None
            rows[block] = tokens[len(blocks) * BLOCK : (len(blocks) + 1) * BLOCK]
            blocks.append(block)
        tree.insert(tokens, blocks)
        for block in blocks:
            pool.release(block)
        known.append(tokens)
        pool.check(tree.blocks())


def test_a_block_that_fills_up_takes_the_place_of_its_beginning():
    pool = BlockPool(4)
    tree, block = PrefixTree(pool), pool.take()
    assert block is not None
    for length in (3, 10, BLOCK):
        tree.insert([1] * length, [block])
        assert len(tree) == 1 and tree.match([1] * 99, 98) == (
            ([block], None, BLOCK) if length == BLOCK else ([], block, length)
        )
    pool.release(block)
    pool.check(tree.blocks())


def test_what_was_used_last_is_forgotten_last():
    pool = BlockPool(8)
    tree = PrefixTree(pool)
    beginnings = [[number] * BLOCK for number in range(4)]
    for tokens in beginnings:
        block = pool.take()
        assert block is not None
        tree.insert(tokens, [block])
        if tokens[0] != 3:
            pool.release(block)  # the last one is in use
    tree.match(beginnings[0], BLOCK)
    assert tree.evict(2) == 2
    assert [tree.match(tokens, BLOCK)[2] for tokens in beginnings] == [BLOCK, 0, 0, BLOCK]
    assert tree.evict(9) == 1  # never what a sequence uses
    assert tree.match(beginnings[3], BLOCK)[2] == BLOCK and pool.num_free == 7


def test_a_beginning_is_not_forgotten_before_what_goes_on_from_it():
    pool = BlockPool(8)
    tree = PrefixTree(pool)
    blocks = [block for block in (pool.take() for _ in range(3)) if block is not None]
    tokens = [7] * (3 * BLOCK)
    tree.insert(tokens, blocks)
    for block in blocks:
        pool.release(block)
    for left in (2, 1, 0):
        assert tree.evict(1) == 1 and tree.match(tokens, len(tokens))[2] == left * BLOCK
    assert pool.num_free == 8


def test_a_lost_block_is_told():
    pool = BlockPool(4)
    tree, block = PrefixTree(pool), pool.take()
    assert block is not None
    tree.insert([1], [block])
    with pytest.raises(AssertionError, match=rf"blocks \[{block}\]: references \[2\], expected \[1\]"):
        pool.check(tree.blocks())
    pool.release(block)
    pool.check(tree.blocks())
    tree.clear()
    pool.check([])
    with pytest.raises(AssertionError, match="is free"):
        pool.release(block)
