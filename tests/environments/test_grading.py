"""Gold dialogues succeed; every way to fail is found, and so is every way to cheat that we thought of."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from tool_dialogues import GOLD_TASKS, PEOPLE, calls_message, gold_script, play, task

from openk2.environments.answers import atoms, hedges, states
from openk2.environments.equivalence import same_call
from openk2.environments.grading import FAILURES, grade
from openk2.protocols import ExpectedCall, Message, Outcome, Task, Turn

MULTIPLY = task("calculator", "What is 37 times 48?", {"expression": "37*48"}, "1776")
GOLD_CALL = [("calculator", {"expression": "37*48"})]


def say(text: str) -> Message:
    return {"role": "assistant", "content": text}


def graded(task: Task, *script: Message, finished: bool = True, truncated: bool = False) -> Outcome:
    outcome = grade(task, play(task, script), finished, truncated)
    assert outcome.failure == "" if outcome.success else outcome.failure in FAILURES
    return outcome


@pytest.mark.parametrize("gold", GOLD_TASKS, ids=lambda gold: gold.id)
def test_gold_dialogues_succeed(gold: Task) -> None:
    assert graded(gold, *gold_script(gold)) == Outcome(True, True, True, True)


@pytest.mark.parametrize(
    ("calls", "answer", "failure"),
    [
        (None, "It is 1776.", "no_call"),
        ([("calculator", {"expression": "37*48"})] * 2, "It is 1776.", "extra_call"),
        ([("calculator", {"expression": "37*48"}), ("weekday", {"date": "2024-01-01"})], "It is 1776.", "wrong_tool"),
        ([("weekday", {"date": "2024-01-01"})], "It is 1776.", "wrong_tool"),
        ([("no_such_tool", {})], "It is 1776.", "wrong_tool"),
        ([("calculator", '{"expression": "37*48"')], "It is 1776.", "bad_json"),
        ([("calculator", '["37*48"]')], "It is 1776.", "bad_json"),
        ([("calculator", {"expression": 1776})], "It is 1776.", "schema"),
        ([("calculator", {})], "It is 1776.", "schema"),
        ([("calculator", {"expression": "37*48", "digits": 2})], "It is 1776.", "schema"),
        ([("calculator", {"expression": "37*49"})], "It is 1813.", "wrong_arguments"),
        ([("calculator", {"expression": "1776"})], "It is 1776.", "wrong_arguments"),
        ([("calculator", {"expression": "37*48+0"})], "It is 1776.", "wrong_arguments"),
        ([("calculator", {"expression": "37 x 48"})], "It is 1776.", "tool_error"),
        (GOLD_CALL, "It is 1777.", "wrong_answer"),
    ],
)
def test_each_failure_has_its_type(calls: Any, answer: str, failure: str) -> None:
    asked = replace(MULTIPLY, tools=("calculator", "weekday"))
    script = [say(answer)] if calls is None else [calls_message(calls, 0), say(answer)]
    outcome = graded(asked, *script)
    assert outcome.failure == failure
    assert not outcome.success


def test_parts_are_reported_by_themselves() -> None:
    wrong_answer = graded(MULTIPLY, calls_message(GOLD_CALL, 0), say("It is 5."))
    assert wrong_answer == Outcome(True, True, False, True, "wrong_answer")
    wrong_schema = graded(MULTIPLY, calls_message([("calculator", {"expression": 1})], 0), say("It is 1776."))
    assert wrong_schema == Outcome(False, False, True, True, "schema")
    wrong_values = graded(MULTIPLY, calls_message([("calculator", {"expression": "37*4*12"})], 0), say("It is 1776."))
    assert wrong_values == Outcome(False, True, True, True, "wrong_arguments")
    no_call = graded(MULTIPLY, say("It is 1776."))
    assert no_call == Outcome(False, False, True, True, "no_call")


def test_an_error_that_is_corrected_is_still_an_error() -> None:
    first = calls_message([("calculator", {"expression": "37x48"})], 0)
    assert graded(MULTIPLY, first, calls_message(GOLD_CALL, 1), say("It is 1776.")).failure == "tool_error"


def test_unfinished_and_cut_dialogues() -> None:
    messages = play(MULTIPLY, [calls_message(GOLD_CALL, 0)])
    assert grade(MULTIPLY, messages, False, False).failure == "unfinished"
    assert grade(MULTIPLY, messages, False, True).failure == "budget"
    # A dialogue is never finished on someone's word alone.
    assert grade(MULTIPLY, messages, True, False).failure == "wrong_answer"
    two_turns = replace(MULTIPLY, turns=MULTIPLY.turns * 2)
    one_played = play(MULTIPLY, gold_script(MULTIPLY))
    assert grade(two_turns, one_played, True, False).failure == "unfinished"
    assert grade(MULTIPLY, one_played, True, True).failure == "budget"
    assert grade(MULTIPLY, [], True, False) == Outcome(False, False, False, False, "unfinished")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "I cannot say.",
        "It is 1776 or 1777.",
        "1774 1775 1776 1777",
        "It is 17760.",
        "It is 1.776.",
        "It is 1776.5.",
        "It is -1776.",
        "It is 11776",
        "version 1776.2.1",
        "<|tool_calls_section_begin|> 1776",
        "<|im_end|>1776",
        " ".join(str(number) for number in range(2000)),
    ],
)
def test_answers_that_do_not_count(text: str) -> None:
    assert graded(MULTIPLY, calls_message(GOLD_CALL, 0), say(text)).failure in ("wrong_answer", "bad_json")


@pytest.mark.parametrize(
    "text",
    [
        "1776",
        "It is 1,776.",
        "37 times 48 is 1776!",
        "1776.0",
        "The result: 1776, of course.",
        "(1776)",
        "$1776",
        "1776km",
    ],
)
def test_answers_that_count(text: str) -> None:
    assert graded(MULTIPLY, calls_message(GOLD_CALL, 0), say(text)).success


def test_words_of_the_same_class_hedge() -> None:
    day = task("weekday", "What day is 2024-07-04?", {"date": "2024-07-04"}, "Thursday")
    call = calls_message([("weekday", {"date": "2024-07-04"})], 0)
    assert graded(day, call, say("a thursday")).success
    assert not graded(day, call, say("Monday, Tuesday, Wednesday, Thursday or Friday")).success
    assert not graded(day, call, say("Thursdayish")).success
    query = {"query": "SELECT name FROM people WHERE city = 'Oslo'"}
    name = task("sql_query", "Who lives in Oslo?", query, "Bob", **PEOPLE)
    call = calls_message([("sql_query", query)], 0)
    assert graded(name, call, say("Bob lives in Oslo.")).success
    assert not graded(name, call, say("Ada, Bob, Cleo or Dan.")).success
    color = task("git_show", "Color of shop on main?", {"repo_path": "shop", "revision": "main:COLOR"}, "yellow")
    call = calls_message([("git_show", {"repo_path": "shop", "revision": "main:COLOR"})], 0)
    assert graded(color, call, say("The color is yellow.")).success
    assert not graded(color, call, say("red green blue yellow purple orange")).success


def test_numbers_of_the_needed_call_may_be_named() -> None:
    arguments = {"value": -5, "from_unit": "celsius", "to_unit": "fahrenheit"}
    cold = task("convert_units", "What is minus five degrees in fahrenheit?", arguments, "23")
    call = calls_message([("convert_units", arguments)], 0)
    assert graded(cold, call, say("-5 celsius are 23 fahrenheit.")).success
    assert not graded(cold, call, say("-6 celsius are 23 fahrenheit.")).success


def test_plain_talk() -> None:
    plain = Task("p", "plain", "", ("calculator",), (Turn("Hello!", (), ""),))
    assert graded(plain, say("Hello to you, 7 times!")).success
    assert graded(plain, say("")).failure == "wrong_answer"
    assert graded(plain, say("<|tool_call_begin|>functions.calculator:0")).failure == "bad_json"
    assert graded(plain, calls_message(GOLD_CALL, 0), say("Hello!")).failure == "extra_call"


def test_broken_call_grammar_fails() -> None:
    call = {**calls_message(GOLD_CALL, 0), "malformed": "a tool call without its end"}
    outcome = graded(MULTIPLY, call, say("It is 1776."))
    assert (outcome.failure, outcome.arguments_valid) == ("bad_json", False)


def test_the_first_turn_that_fails_names_the_failure() -> None:
    two = replace(
        MULTIPLY, turns=(*MULTIPLY.turns, Turn("And 1+1?", (ExpectedCall("calculator", {"expression": "1+1"}),), "2"))
    )
    outcome = graded(two, say("1776"), calls_message([("calculator", "{")], 0), say("2"))
    assert outcome.failure == "no_call"


def test_calls_of_one_turn_come_in_any_order() -> None:
    needs = (ExpectedCall("calculator", {"expression": "2*9"}), ExpectedCall("calculator", {"expression": "3*9"}))
    both = Task("b", "calculator", "", ("calculator",), (Turn("2*9 and 3*9?", needs, "27"),))
    swapped = [("calculator", {"expression": "9*3"}), ("calculator", {"expression": "2 * 9"})]
    assert graded(both, calls_message(swapped, 0), say("18 and 27.")).success
    assert graded(both, calls_message(swapped[:1], 0), say("27.")).failure == "no_call"
    one_by_one = [calls_message(swapped[:1], 0), calls_message(swapped[1:], 1)]
    assert graded(both, *one_by_one, say("18 and 27.")).success


SAME = [
    ("calculator", {"expression": "37*48"}, {"expression": "48 * 37"}, True),
    ("calculator", {"expression": "37*48"}, {"expression": "(37)*48.0"}, True),
    ("calculator", {"expression": "4*9"}, {"expression": "6*6"}, False),
    ("calculator", {"expression": "10-4"}, {"expression": "4-10"}, False),
    ("calculator", {"expression": "1+2"}, {"expression": "one+two"}, False),
    ("date_shift", {"date": "2024-01-01", "days": 5}, {"date": "2024-01-01", "days": 5.0}, True),
    ("date_shift", {"date": "2024-01-09", "days": 5}, {"date": "January 9 2024", "days": 5}, True),
    ("weekday", {"date": "9 March 2024"}, {"date": "2024-03-08"}, False),
    ("weekday", {"date": "9 March 2024"}, {"date": "9 Marsh 2024"}, False),
    (
        "days_between",
        {"start": "2024-01-09", "end": "2024-02-01"},
        {"start": "9 January 2024", "end": "2024-02-01"},
        True,
    ),
    ("date_shift", {"date": "2024-01-01", "days": 5}, {"date": "2024-01-01", "days": "5"}, False),
    ("date_shift", {"date": "2024-01-01", "days": 1}, {"date": "2024-01-01", "days": True}, False),
    ("date_shift", {"date": "2024-01-01", "days": 1}, {"date": "2024-01-01"}, False),
    (
        "convert_units",
        {"value": 5, "from_unit": "feet", "to_unit": "miles"},
        {"value": 5, "from_unit": "foot", "to_unit": "Mile"},
        True,
    ),
    (
        "convert_units",
        {"value": 5, "from_unit": "feet", "to_unit": "miles"},
        {"value": 5, "from_unit": "miles", "to_unit": "feet"},
        False,
    ),
    ("set_note", {"key": "k", "text": "a b"}, {"key": "k", "text": " a  b"}, True),
    ("set_note", {"key": "k", "text": "a b"}, {"key": "k", "text": "a c"}, False),
    ("other", {"x": [1, {"y": None}]}, {"x": [1.0, {"y": None}]}, True),
    ("other", {"x": [1, {"y": None}]}, {"x": [1, {"y": 0}]}, False),
]


@pytest.mark.parametrize(("name", "expected", "actual", "same"), SAME)
def test_equal_arguments(name: str, expected: dict[str, Any], actual: dict[str, Any], same: bool) -> None:
    assert same_call(name, expected, actual, {}) is same


@pytest.mark.parametrize(
    ("actual", "same"),
    [
        ("select age from people where name like 'bob'", True),
        ("SELECT p.age FROM people p WHERE p.name IN ('Bob')", True),
        ("SELECT 51", False),
        ("SELECT 51 FROM people LIMIT 1", False),
        ("SELECT max(age) FROM people", False),
        ("SELECT age FROM people WHERE city = 'Oslo'", False),
        ("SELECT name, age FROM people WHERE name = 'Bob'", False),
        ("SELECT age FROM people WHERE name = 'Ada'", False),
        ("DROP TABLE people", False),
    ],
)
def test_queries_are_compared_by_what_they_find(actual: str, same: bool) -> None:
    expected = {"query": "SELECT age FROM people WHERE name = 'Bob'"}
    assert same_call("sql_query", expected, {"query": actual}, PEOPLE) is same


@pytest.mark.parametrize("constant", ["SELECT 4", "SELECT 4 FROM people LIMIT 1", "SELECT max(4) FROM people"])
def test_a_constant_is_no_query(constant: str) -> None:
    assert not same_call("sql_query", {"query": "SELECT count(*) FROM people"}, {"query": constant}, PEOPLE)
    assert same_call(
        "sql_query", {"query": "SELECT count(*) FROM people"}, {"query": "select COUNT(name) from people"}, PEOPLE
    )


def test_order_counts_only_where_it_is_asked_for() -> None:
    upward, downward = "SELECT name FROM people ORDER BY age", "SELECT name FROM people ORDER BY age DESC"
    assert not same_call("sql_query", {"query": upward}, {"query": downward}, PEOPLE)
    assert same_call("sql_query", {"query": "SELECT name FROM people"}, {"query": downward}, PEOPLE)


@pytest.mark.parametrize(
    ("answer", "text", "stated"),
    [
        ("2024-03-01", "That is 2024-03-01.", True),
        ("2024-03-01", "That is 2024-03-010.", False),
        ("2024-03-0", "That is 2024-03-01.", False),
        ("1.4.2", "Version 1.4.2.", True),
        ("1.4", "Version 1.4.2.", False),
        ("-5", "It is \u22125 degrees.", True),
        ("5", "It is -5 degrees.", False),
        ("1,234.5", "About 1234.50", True),
        ("359", "359 days", True),
        ("Blue Heron 7", "the wifi is  blue\nheron 7!", True),
        ("art", "start", False),
        ("main", "* main", True),
        ("2", "I am openk2.", False),
        ("2", "item2 or gpt4.2", False),
        ("1.2", "It is v1.2.", True),
        ("1.4.2", "tagged release-1.4.2", True),
        ("3", "on branch-3", True),
        ("-3", "on branch-3", False),
        ("-3", "on h2o-3", False),
        ("", "anything", False),
    ],
)
def test_stating_an_answer(answer: str, text: str, stated: bool) -> None:
    assert states(answer, text) is stated


@pytest.mark.parametrize(
    ("text", "numbers", "texts"),
    [
        ("23-3", (23, 3), ()),
        ("1160/8", (1160, 8), ()),
        ("3x4 and 3*-2", (3, 4, -2), ()),
        ("10-4-2", (10, 4, 2), ()),
        ("1000-25-40", (1000, 25, 40), ()),  # no month is the 25th
        ("5km, 2nd", (5, 2), ()),
        ("2024-03-05", (), ("2024-03-05",)),
        ("2024-03-05 at 12:30", (), ("2024-03-05", "12:30")),
        ("release-1.4.2 of openk2, h2o and a1b2", (), ("1.4.2",)),
        ("gpt4.5 is older than v1.2", (Decimal("1.2"),), ()),
    ],
)
def test_what_counts_as_a_number(text: str, numbers: tuple[int, ...], texts: tuple[str, ...]) -> None:
    assert atoms(text) == {*map(Decimal, numbers), *texts}


def test_an_answer_may_repeat_a_question_written_without_spaces() -> None:
    minus = task("calculator", "What is 23-3?", {"expression": "23-3"}, "20")
    assert graded(minus, calls_message([("calculator", {"expression": "23-3"})], 0), say("23 minus 3 is 20.")).success
    assert not hedges("145", "1160 over 8 is 145.", ["1160/8"])
    assert not hedges("20", "I am openk2 and say 20.", [])
    assert hedges("20", "23 minus 4 is 20.", ["What is 23-3?"])


def test_hedging() -> None:
    assert not hedges("3.1", "12 / 5, less 2024, is 3.1", ["What is 12/5 as of 2024-01-01?"])
    assert hedges("2024-03-01", "2024-03-01 or 2024-03-02", ["30 days after 2024-01-31"])
    assert not hedges("3", "It is 3, not 4.", ["Is it 4?"])
    assert hedges("3", "It is 3, not 4.", ["Is it so?"])
    assert hedges("-11", "11 or -11", ["3-14"])
    assert not hedges("yes", "Yes.", [])
    assert hedges("yes", "Yes and no.", [])
    assert not hedges("Rome", "Rome, not Oslo", ["Rome or Oslo?"], [["Rome", "Oslo"]])
