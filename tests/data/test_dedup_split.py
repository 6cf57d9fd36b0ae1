"""Duplicates that were planted are found, others stay; the split holds still."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openk2.data.cutting import cut, limit_for
from openk2.data.dedup import find_duplicates, find_leaks, jaccard, shingles
from openk2.data.sources import Document
from openk2.data.split import clip_bytes, split_domain

from .conftest import WORDS, prose


def changed(text: str, words: int, seed: int = 0) -> str:
    """`text` with this many of its words replaced."""
    parts = text.split(" ")
    for at in np.random.default_rng(seed).choice(len(parts), words, replace=False):
        parts[at] = "CHANGED"
    return " ".join(parts)


def test_planted_duplicates_are_found_and_others_kept() -> None:
    base = [prose(seed, 400) for seed in range(20)]
    texts = [*base, base[3].replace("\n", "  \n"), changed(base[5], 6), base[7] + prose(99, 20), changed(base[9], 200)]
    found = find_duplicates(texts)
    assert found.exact == {20: 3}
    assert found.near == {21: 5, 22: 7}
    assert found.kept == (*range(20), 23)


def test_same_words_in_another_order_are_no_duplicate() -> None:
    words = prose(1, 300).split()
    shuffled = np.random.default_rng(0).permutation(words)
    assert find_duplicates([" ".join(words), " ".join(shuffled)]).kept == (0, 1)


def test_texts_without_words_are_compared_exactly() -> None:
    found = find_duplicates(["***", "---", "***\n"])
    assert found.kept == (0, 1) and found.exact == {2: 0}


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=40))
def test_shingles_are_the_distinct_runs_of_five_words(words: list[str]) -> None:
    runs = {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}
    assert len(shingles(" ".join(words))) == len(runs)
    assert np.array_equal(shingles(" ".join(words)), shingles("\n\t".join(words).upper() + "!"))


def test_jaccard_counts_shared_shingles() -> None:
    a, b = shingles("a b c d e f g"), shingles("b c d e f g h")
    assert jaccard(a, a) == 1.0 and jaccard(a, b) == 2 / 4


def test_leaks_are_found_whichever_side_is_longer() -> None:
    held = [prose(1, 300), prose(2, 300)]
    training = [
        prose(3, 300),
        prose(4, 2000) + held[0] + prose(5, 2000),  # a validation document inside a long one
        held[1][200:900],  # a passage of one
        held[0][:60] + prose(6, 300),  # a few shared words: no leak
    ]
    assert find_leaks(training, held) == [1, 2]
    assert find_leaks(training, []) == []


def documents(count: int, start: int = 0) -> list[Document]:
    return [Document(prose(seed, 50), "d", f"{seed}") for seed in range(start, start + count)]


@given(st.integers(2, 40), st.integers(1, 20), st.integers(0, 3))
def test_adding_documents_never_moves_one_into_validation(count: int, added: int, seed: int) -> None:
    before = split_domain(documents(count), 900, seed)
    after = split_domain(documents(count + added), max(1, sum(len(d.text) for d in before.validation)), seed)
    old = {document.source_id for document in before.training}
    assert not old & {document.source_id for document in after.validation}


def test_the_split_ignores_order_and_names() -> None:
    first = split_domain(documents(60), 2_000, 0)
    renamed = [Document(d.text, d.domain, "x") for d in reversed(documents(60))]
    assert [d.text for d in split_domain(renamed, 2_000, 0).validation] == [d.text for d in first.validation]
    assert [d.text for d in split_domain(renamed, 2_000, 1).validation] != [d.text for d in first.validation]


def test_held_out_bytes_are_exact_and_nothing_is_on_both_sides() -> None:
    texts = [prose(seed, 60).replace("river", "rivière") for seed in range(100)]
    split = split_domain([Document(text, "d", str(i)) for i, text in enumerate(texts)], 3_001, 0)
    held = sum(len(document.text.encode()) for document in split.validation)
    assert 3_001 - 3 <= held <= 3_001
    total = sum(len(text.encode()) for text in texts)
    assert held + split.unused_bytes + sum(len(d.text.encode()) for d in split.training) == total
    assert not {d.source_id for d in split.training} & {d.source_id for d in split.validation}


def test_a_small_domain_gives_at_most_a_tenth_and_a_single_document_nothing() -> None:
    split = split_domain(documents(10), 10**6, 0)
    total = sum(len(d.text) for d in documents(10))
    assert sum(len(d.text) for d in split.validation) == total // 10
    assert split_domain(documents(1), 100, 0).validation == []


@pytest.mark.parametrize(("limit", "wanted"), [(5, "aé€"), (4, "aé"), (3, "aé"), (2, "a"), (0, "")])
def test_clipping_keeps_whole_characters(limit: int, wanted: str) -> None:
    assert clip_bytes("aé€€", limit if limit != 5 else 6) == wanted


@given(st.text(alphabet="ab \n", max_size=300), st.integers(4, 40))
def test_parts_join_to_the_text(text: str, limit: int) -> None:
    parts = cut(text, limit)
    assert "".join(parts) == text
    assert all(len(part) <= limit for part in parts)
    assert all(2 * len(part) >= limit for part in parts[:-1])


def test_cuts_prefer_the_stronger_boundary() -> None:
    play = (
        "line\n" * 14
        + "\nSCENE II. A hall.\n"
        + "line\n" * 4
        + "\nACT II.\n"
        + "line\n" * 2
        + "\nSCENE I.\n"
        + "x\n" * 90
    )
    assert cut(play, 160)[1].startswith("ACT II.")
    code = "import a\n\n\n" + "x = 1\n" * 12 + "\n\n@wraps\ndef f():\n    pass\n" + "    y = 2\n" * 40
    assert cut(code, 130)[1].startswith("@wraps")


def test_small_domains_are_cut_finer() -> None:
    assert limit_for(10**7) == 32_000 and limit_for(100_000) == 5_000 and limit_for(10) == 1_000
