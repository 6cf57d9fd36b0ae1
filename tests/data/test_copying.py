import numpy as np
import pytest

from openk2.data.batch import IGNORE
from openk2.data.copying import LONGEST, SHORTEST, copying_rows


@pytest.mark.parametrize("length", [5, 6, 64, 512])
def test_every_document_is_the_same_tokens_twice_and_only_the_second_time_counts(length):
    batch = copying_rows(8, length, 300, np.random.default_rng(3))
    lengths = []
    for row in range(8):
        for document in sorted(set(batch.document_ids[row].tolist()) - {-1}):
            place = np.flatnonzero(batch.document_ids[row] == document)
            assert (np.diff(place) == 1).all() and (batch.positions[row, place] == np.arange(len(place))).all()
            once, again = np.split(batch.input_ids[row, place], 2)
            assert (once == again).all() and once.max() < 300
            targets = batch.targets[row, place]
            assert (targets[: len(once)] == IGNORE).all() and targets[-1] == IGNORE
            assert (targets[len(once) : -1] == again[1:]).all()
            lengths.append(len(once))
        left = batch.document_ids[row] == -1
        assert left.sum() < 2 * SHORTEST and (batch.targets[row, left] == IGNORE).all()
    assert (batch.weights == (batch.targets != IGNORE)).all()
    assert all(SHORTEST <= n <= LONGEST for n in lengths)
    numbered = batch.document_ids[batch.document_ids >= 0]
    assert len(lengths) == len(set(numbered.tolist())) and (np.diff(numbered) >= 0).all()
    if length == 512:
        assert min(lengths) < 10 and max(lengths) > 40


def test_rows_depend_on_the_random_stream_alone():
    first, same, other = (copying_rows(2, 64, 300, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first.input_ids == same.input_ids).all() and (first.input_ids != other.input_ids).any()
