"""Extraction and comparison, right and wrong, and that nothing in an answer is ever executed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from openk2.evaluate import answers
from openk2.evaluate.answers import (
    boxed_answer,
    hash_answer,
    last_number,
    normalise_math,
    same_math,
    same_number,
    symbolic_library,
)

needs_library = pytest.mark.skipif(symbolic_library() is None, reason="math-verify is not installed")


def test_extraction() -> None:
    assert hash_answer("so 3 + 4 = 7\n#### 1,234\n#### 9") == "1,234"
    assert hash_answer("#### $-12.50.") == "$-12.50"
    assert hash_answer("seven") is None
    assert boxed_answer(r"a \boxed{1} then \boxed{\frac{1}{x_{2}}} end") == r"\frac{1}{x_{2}}"
    assert boxed_answer(r"never closed \boxed{\frac{1}{2}") is None
    assert last_number("from 3 to 4,500.25!") == "4,500.25"
    assert last_number("none") is None


@pytest.mark.parametrize(
    ("answer", "expected", "same"),
    [("1,234", "1234", True), ("$18.00", "18", True), ("18", "18.5", False), ("x", "x", False), ("-3", "3", False)],
)
def test_numbers(answer: str, expected: str, same: bool) -> None:
    assert same_number(answer, expected) is same


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (r"\dfrac{1}{2}", r"\frac12"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        (r"10,\!080", "10080"),
        (r"5\text{ cm}", "5"),
        (r"90^\circ", "90"),
        (r"\text{Evelyn}", "Evelyn"),
        ("x = 5", "5"),
        (r"\$32{,}000", "32000"),
        (r"12\%", "12"),
        ("2.50", "2.5"),
        (r"\sqrt2", r"\sqrt{2}"),
    ],
)
def test_strings_that_only_look_different(answer: str, expected: str) -> None:
    assert normalise_math(answer) == normalise_math(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("5", "6"), ("(1,2)", "(2,1)"), ("1,2", "12"), (r"\frac{1}{2}", r"\frac{2}{1}"), ("", "0"), ("x+1", "x-1")],
)
def test_strings_that_differ_stay_different(answer: str, expected: str) -> None:
    assert not same_math(answer, expected, symbolic=False)


@needs_library
def test_symbolic_comparison_sees_equal_values() -> None:
    assert same_math("0.5", r"\frac{1}{2}", symbolic=True)
    assert same_math(r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", symbolic=True)
    assert not same_math(r"\frac{\sqrt{3}}{2}", r"\frac{1}{\sqrt{2}}", symbolic=True)
    assert not same_math("0.5", r"\frac{1}{2}", symbolic=False)


@pytest.mark.parametrize("answer", ["9^{9^{9^9}}", "9^9^9^9", "10^{99999999}", "99999!", "(" * 5000])
def test_costly_answers_are_not_computed(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    def computed(*latex: str) -> bool:
        raise AssertionError(f"handed to the library: {latex}")

    monkeypatch.setattr(answers, "_same_expression", computed)
    assert not same_math(answer, "7", symbolic=True)


@needs_library
def test_an_answer_is_never_executed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for text in (f"open('{mark}','w')", f"__import__('os').system('touch {mark}')", rf"\text{{open('{mark}','w')}}"):
        for answer in (text, f"{text}+1", f"${text}$"):
            assert not same_math(answer, "5", symbolic=True)
    assert not mark.exists()


def test_the_library_is_not_used_where_its_time_limit_cannot_work() -> None:
    seen: list[str | None] = ["unset"]
    thread = threading.Thread(target=lambda: seen.__setitem__(0, symbolic_library()))
    thread.start()
    thread.join()
    assert seen == [None]
