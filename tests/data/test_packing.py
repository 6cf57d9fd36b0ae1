"""Packing: nothing lost, nothing crosses a document, the mask sits on the right target."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openk2.data.batch import IGNORE, Batch, concatenate
from openk2.data.packing import pack_documents, pack_examples

documents = st.lists(st.lists(st.integers(1, 500), max_size=30), min_size=1, max_size=12).filter(any)


def runs(batch: Batch) -> list[tuple[int, slice]]:
    """(row, span) of each document id, in order."""
    found = []
    for row in range(batch.num_rows):
        ids = batch.document_ids[row]
        for document in dict.fromkeys(ids[ids >= 0].tolist()):
            at = np.flatnonzero(ids == document)
            assert at[-1] - at[0] + 1 == len(at), "a document id is one contiguous run"
            found.append((row, slice(int(at[0]), int(at[-1]) + 1)))
    return found


@given(documents, st.integers(1, 17))
def test_stream_keeps_every_token_and_predicts_each_but_the_first(docs: list[list[int]], length: int) -> None:
    batch = pack_documents(docs, length)
    real = batch.document_ids >= 0
    assert batch.input_ids[real].tolist() == [token for doc in docs for token in doc]
    assert batch.targets[batch.targets != IGNORE].tolist() == [token for doc in docs for token in doc[1:]]
    assert not real[-1].all() or real.all()
    assert real[:-1].all(), "only the last row may be padded"


@given(documents, st.integers(1, 17))
def test_stream_targets_stay_in_their_document(docs: list[list[int]], length: int) -> None:
    batch = pack_documents(docs, length)
    following = [token for doc in docs if doc for token in [*doc[1:], IGNORE]]
    assert batch.targets[batch.document_ids >= 0].tolist() == following
    assert (batch.targets[batch.document_ids < 0] == IGNORE).all()
    assert ((batch.weights == 1) == (batch.targets != IGNORE)).all()
    assert batch.num_loss_tokens == sum(token != IGNORE for token in following)


@given(documents, st.integers(1, 17))
def test_stream_positions_restart_and_ids_are_consecutive(docs: list[list[int]], length: int) -> None:
    batch = pack_documents(docs, length)
    spans = runs(batch)
    assert [int(batch.document_ids[row, span.start]) for row, span in spans] == list(range(len(spans)))
    for row, span in spans:
        assert batch.positions[row, span].tolist() == list(range(span.stop - span.start))


def test_a_long_document_goes_on_in_the_next_row() -> None:
    batch = pack_documents([[1, 2, 3, 4, 5], [6, 7]], 3, pad_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 3], [4, 5, 6], [7, 9, 9]]
    assert batch.targets.tolist() == [[2, 3, 4], [5, IGNORE, 7], [IGNORE] * 3]
    assert batch.document_ids.tolist() == [[0, 0, 0], [1, 1, 2], [3, -1, -1]]
    assert batch.positions.tolist() == [[0, 1, 2], [0, 1, 0], [0, 0, 0]]


example = st.integers(1, 20).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(1, 500), min_size=n, max_size=n), st.lists(st.booleans(), min_size=n, max_size=n)
    )
)


@given(st.lists(example, min_size=1, max_size=15), st.integers(4, 24))
def test_examples_are_whole_and_masked_on_the_next_token(examples: list, length: int) -> None:
    packed = pack_examples(examples, length)
    batch = packed.batch
    seen = []
    for row, span in runs(batch):
        index = int(batch.example_ids[row, span.start])
        ids, mask = examples[index]
        seen.append(index)
        assert (batch.example_ids[row, span] == index).all()
        assert batch.input_ids[row, span].tolist() == ids
        assert batch.positions[row, span].tolist() == list(range(len(ids)))
        wanted = [ids[t + 1] if t + 1 < len(ids) and mask[t + 1] else IGNORE for t in range(len(ids))]
        assert batch.targets[row, span].tolist() == wanted
    assert sorted([*seen, *packed.too_long, *packed.without_loss]) == list(range(len(examples)))
    assert list(packed.too_long) == [i for i, (ids, _) in enumerate(examples) if len(ids) > length]
    assert (batch.weights[batch.targets == IGNORE] == 0).all()


def test_float_weights_go_with_their_target() -> None:
    packed = pack_examples([([5, 6, 7, 8], [0.0, 0.5, 0.0, -2.0])], 6)
    assert packed.batch.targets.tolist() == [[6, IGNORE, 8, IGNORE, IGNORE, IGNORE]]
    assert packed.batch.weights.tolist() == [[0.5, 0.0, -2.0, 0.0, 0.0, 0.0]]


def test_best_fit_fills_rows() -> None:
    lengths = [6, 4, 7, 3, 5, 5]
    packed = pack_examples([([1] * n, [True] * n) for n in lengths], 10)
    assert packed.batch.num_rows == 3 and packed.fill == 1.0


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"example 1: saw 3 ids and 2 mask values"):
        pack_examples([([1, 2], [True, True]), ([1, 2, 3], [True, True])], 8)


def test_rows_taken_and_joined_keep_documents_apart() -> None:
    batch = pack_documents([[1, 2], [3, 4], [5, 6, 7, 8], [9]], 4)
    joined = concatenate([batch.take([2, 0]), batch.take([0])])
    assert joined.input_ids.tolist() == [[9, 0, 0, 0], [1, 2, 3, 4], [1, 2, 3, 4]]
    assert joined.document_ids.tolist() == [[0, -1, -1, -1], [1, 1, 2, 2], [3, 3, 4, 4]]
