"""Values of a schema: always valid, always with an end in sight, or refused by the keyword; compiled once."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from generated_schemas import FORMATS, PATTERNS, UNSUPPORTED, Schemas
from jsonschema import Draft202012Validator, FormatChecker
from llguidance import LLMatcher
from schema_keywords import CASES

from openk2.chat import Tokenizer
from openk2.chat.grammar import TurnGrammar
from openk2.chat.json_examples import string_ends
from openk2.chat.json_grammar import JsonGrammar, JsonState, Lexicon


@pytest.fixture(scope="module")
def lexicon(tokenizer: Tokenizer) -> Lexicon:
    return Lexicon(tokenizer)


def drawn(grammar: JsonGrammar, rng: np.random.Generator, length: int = 60) -> str:
    """A value by a model that knows nothing; after `length` tokens its ending."""
    state, ids = grammar.start(), list[int]()
    while len(ids) < length:
        allowed = np.flatnonzero(state.mask())
        if state.complete and (not len(allowed) or rng.random() < 0.3):
            return grammar.lexicon.tokenizer.decode(ids)
        ids.append(int(rng.choice(allowed)))
        state.advance(ids[-1])
    return grammar.lexicon.tokenizer.decode(ids + ended(state))


def ended(state: JsonState) -> list[int]:
    """An ending, and that it is one."""
    ending, walk = state.ending(), state.copy()
    assert ending is not None
    for token in ending:
        walk.advance(token)  # asserts that it may come
    assert walk.complete
    return ending


def allows(grammar: JsonGrammar, text: str) -> bool:
    ids = grammar.lexicon.tokenizer.encode(text)
    return grammar.start().ending(ids) == ids


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_string_ends_from_wherever_its_pattern_has_led(pattern, lexicon):
    grammar, rng = JsonGrammar(lexicon, {"type": "string", "pattern": pattern}, "here"), np.random.default_rng(0)
    for _ in range(6):
        state, ids = grammar.start(), list[int]()
        for _ in range(25):
            value = json.loads(lexicon.tokenizer.decode(ids + ended(state)))
            assert re.search(pattern, value)
            allowed = np.flatnonzero(state.mask())
            if not len(allowed):
                break
            ids.append(int(rng.choice(allowed)))
            state.advance(ids[-1])


@pytest.mark.parametrize(
    ("pattern", "ends"),
    [
        (r"^.+\.csv$", ["v", "sv", "csv", ".csv", "a.csv"]),
        ("(foo|ba)x", ["x", "ax", "ox", "bax", "oox", "foox"]),
        ("a{2}b?", ["a", "b", "aa"]),
        (r"[^a-z][\d]", ["0", "00"]),
        (r'\\"', [r"\"", r"\\\""]),
        ("(?=a)b", []),
        ("(x{500}){500}", []),
        ("(a", []),
    ],
)
def test_the_ends_of_a_pattern(pattern, ends):
    assert string_ends({"properties": {"p": {"pattern": pattern}}}) == [end + '"' for end in ends]


def test_what_would_take_long_to_compile_is_refused_and_odd_numbers_are_no_fault(lexicon):
    chain = {f"d{n}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/d{n + 1}"}}} for n in range(200)}
    schema = {"$ref": "#/$defs/d0", "$defs": {**chain, "d200": {"type": "string"}}}
    with pytest.raises(ValueError, match=r"\$ref to 201 places, expected at most 128"):
        JsonGrammar(lexicon, schema, "here")
    odd = {"type": "number", "minimum": 1e308, "multipleOf": 0.001}
    properties = {"n": {"type": "string", "description": "text"}, "m": {"$ref": "#/$defs/odd"}}
    with contextlib.suppress(ValueError):  # refused or kept, and nothing else
        JsonGrammar(lexicon, {"type": "object", "properties": properties, "$defs": {"odd": odd}}, "here")


@pytest.mark.parametrize(
    "bounds",
    [
        {"exclusiveMinimum": 0, "maximum": 0.5},
        {"exclusiveMinimum": 0, "maximum": 1e-05},
        {"exclusiveMinimum": 0, "exclusiveMaximum": 1e-9},
        {"minimum": -1e-07, "exclusiveMaximum": 0},
        {"exclusiveMinimum": 1, "maximum": 1.0000001},
    ],
    ids=str,
)
def test_bounds_that_would_not_be_kept_apart_are_refused(bounds, lexicon):
    with pytest.raises(ValueError, match="exclusiveM"):
        JsonGrammar(lexicon, {"type": "number", **bounds}, "here")


@pytest.mark.parametrize("low", [0, -3.5, 1e6])
def test_exclusive_bounds_hold(low, lexicon):
    for bounds in ({"exclusiveMinimum": low}, {"exclusiveMinimum": low, "maximum": low + 1}):
        grammar = JsonGrammar(lexicon, {"type": "number", **bounds}, "here")
        found = json.loads(lexicon.tokenizer.decode(grammar.shortest))
        assert low < found <= bounds.get("maximum", float("inf"))


def test_a_format_that_nobody_knows_is_a_note(lexicon):
    value = {"format": "binary"}
    properties = {"file": {"type": "string", "format": "binary"}, "enum": {"format": "byte"}, "kept": {"enum": [value]}}
    schema = {"type": "object", "properties": properties, "required": ["file", "kept"], "additionalProperties": False}
    grammar = JsonGrammar(lexicon, schema, "here")
    found = json.loads(lexicon.tokenizer.decode(grammar.shortest))
    assert {"file", "kept"} <= set(found) and found["kept"] == value
    with pytest.raises(ValueError, match="here: saw a schema"):
        JsonGrammar(lexicon, {"type": "string", "format": 7}, "here")


@pytest.mark.parametrize("name", FORMATS)
def test_formats_have_endings(name, lexicon):
    grammar, rng = JsonGrammar(lexicon, {"type": "string", "format": name}, "here"), np.random.default_rng(0)
    for length in range(12):
        json.loads(drawn(grammar, rng, length))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 60, "maximum": -1},
        {"type": "object", "properties": {"n": {"multipleOf": 7, "minimum": 906}}, "required": ["n"]},
        {"type": "object", "properties": {'q"t\\': {"type": "null"}}, "required": ['q"t\\']},
        {"type": "string", "pattern": r"^.+\.csv$", "minLength": 40},
        {"$ref": "#/$defs/tree"},
        {"type": "array", "items": {"$ref": "#/$defs/tree"}, "minItems": 2},
    ],
)
def test_a_short_value_is_found_at_once(schema, lexicon):
    leaf = {"type": "object", "properties": {"leaf": {"format": "email", "type": "string"}}, "required": ["leaf"]}
    deep = {"type": "object", "properties": {"a": {"$ref": "#/$defs/tree"}, "b": {"$ref": "#/$defs/tree"}}}
    whole = {**schema, "$defs": {"tree": {"anyOf": [{**deep, "required": ["a", "b"]}, leaf]}}}
    grammar = JsonGrammar(lexicon, whole, "here")
    value = json.loads(lexicon.tokenizer.decode(grammar.shortest))
    assert Draft202012Validator(whole).is_valid(value) and len(grammar.shortest) < 50


def test_a_name_ends_as_its_pattern_asks(lexicon):
    schema = {"type": "object", "patternProperties": {"^.+_id$": {"type": "null"}}, "additionalProperties": False}
    state = JsonGrammar(lexicon, schema, "here").start()
    for token in lexicon.tokenizer.encode('{"user'):
        state.advance(token)
    assert json.loads('{"user' + lexicon.tokenizer.decode(ended(state))) == {"user_id": None}


def test_what_looks_odd_in_a_schema_does_no_harm(lexicon):
    odd = {"a": {"$ref": "#/b/0"}, "b": [{"type": "array", "minItems": "x"}], "c": {"$ref": 5}, "pattern": 7}
    for schema in (
        {"type": "object", "default": odd, "$defs": {"x": {"$ref": "#/default/b/0"}, "y": {"$ref": "#/default/b/9"}}},
        {"type": "object", "properties": {"pattern": {"const": odd}, "$ref": {}, "minProperties": {"type": "null"}}},
    ):
        assert json.loads(drawn(JsonGrammar(lexicon, schema, "here"), np.random.default_rng(0))) is not None


def test_an_earlier_ending_is_used_again(lexicon):
    """A search from the same places would take other letters."""
    state = JsonGrammar(lexicon, {"minLength": 5, "type": "string"}, "here").start()
    earlier = lexicon.tokenizer.encode('"hello"')
    for at, token in enumerate(earlier):
        assert state.ending(earlier) == earlier[at:]
        state.advance(token)
    assert state.ending(earlier) == []


@pytest.mark.parametrize(("keyword", "value", "rest"), CASES)
def test_no_keyword_is_ignored(keyword, value, rest, lexicon):
    """Kept or refused by name; where it is kept, leaving it out would have been seen."""
    schema = {**rest, keyword: value}
    checks = Draft202012Validator(schema, format_checker=FormatChecker(["ipv4"]))
    try:
        grammar = JsonGrammar(lexicon, schema, "here")
    except ValueError as error:
        assert re.search(rf"\b{keyword.removeprefix('$')}\b", str(error)), error
        print(f"{keyword} {value}: refused")
        return
    rng = np.random.default_rng(0)
    for _ in range(40):
        value_text = drawn(grammar, rng)
        assert checks.is_valid(json.loads(value_text)), value_text
    without = JsonGrammar(lexicon, rest, "here")
    assert not all(checks.is_valid(json.loads(drawn(without, rng))) for _ in range(80))
    print(f"{keyword} {value}: kept")


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "object", "properties": {"a": {"type": "null"}}}, r'{"\u0061":1}'),
        ({"type": "object", "properties": {'q"t': {"type": "null"}}}, r'{"q\u0022t":1}'),
        ({"type": "object", "patternProperties": {"^a": {"type": "null"}}}, r'{"\u0061b":1}'),
    ],
)
def test_a_name_spelt_by_code_is_no_way_around_its_schema(schema, text, lexicon):
    assert not Draft202012Validator(schema).is_valid(json.loads(text))
    assert not allows(JsonGrammar(lexicon, schema, "here"), text)
    assert allows(JsonGrammar(lexicon, schema, "here"), '{"other":1}')


def test_a_name_that_comes_twice_counts_once(lexicon):
    """Once it is read, it is one property: more than one that is not required cannot be kept."""
    schema = {"type": "object", "minProperties": 2, "additionalProperties": {"type": "null"}}
    with pytest.raises(ValueError, match="here: .*minProperties, more than one beyond the required ones"):
        JsonGrammar(lexicon, {"type": "array", "items": schema}, "here")
    kept = JsonGrammar(lexicon, {**schema, "properties": {"a": {"type": "null"}}, "required": ["a"]}, "here")
    assert allows(kept, '{"a":null,"b":null}') and not allows(kept, '{"a":null,"a":null}')


def test_a_schema_cannot_switch_its_checks_off(lexicon):
    schema = {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}
    with pytest.raises(ValueError, match='here: saw a schema that cannot be kept: .*"uniqueItems"'):
        JsonGrammar(lexicon, schema, "here")
    blanks = JsonGrammar(lexicon, {"type": "object", "x-guidance": {"whitespace_pattern": " +"}}, "here")
    assert not allows(blanks, '{ "a": 1}') and allows(blanks, '{"a": 1}')


def test_a_schema_too_deep_is_refused_where_it_stands(lexicon):
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(200):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ValueError, match="^here: saw a schema that cannot be kept: recursion limit"):
        JsonGrammar(lexicon, schema, "here")


def test_a_schema_is_compiled_once_for_as_long_as_it_is_remembered(tokenizer, monkeypatch):
    compile_schema, compiled = LLMatcher.grammar_from_json_schema, []

    def counted(text: str, **options: Any) -> str:
        compiled.append(text)
        return compile_schema(text, **options)

    monkeypatch.setattr("openk2.chat.json_grammar.LLMatcher.grammar_from_json_schema", counted, raising=False)
    lexicon = Lexicon(tokenizer)
    schemas = [{"type": "object", "properties": {"n": {"type": "integer", "minimum": at}}} for at in range(258)]
    tools = [{"type": "function", "function": {"name": f"f{at}", "parameters": schemas[at]}} for at in range(3)]
    for _ in range(3):
        grammar = TurnGrammar(lexicon, json.loads(json.dumps(tools)), response=schemas[0])
        assert [tool.name for tool in grammar.tools] == ["f0", "f1", "f2"]
    assert len(compiled) == 3
    for schema in schemas[3:257]:
        lexicon.compiled(schema, "here")
        lexicon.compiled(schemas[0], "here")  # used again and again, it stays
    assert len(compiled) == 257
    lexicon.compiled(schemas[0], "here")
    assert len(compiled) == 257
    lexicon.compiled(schemas[1], "here")  # the one that was not used for longest has gone
    assert len(compiled) == 258


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_calls_of_generated_tools_are_valid(count, lexicon, codec):
    """A model that knows nothing, made to call each, with budgets from too small to ample."""
    rng, refused, hopeless, calls = np.random.default_rng(count), Counter[str](), 0, 0
    schemas = Schemas(0)
    for _ in range(count):
        schema = schemas.arguments()
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        try:
            grammar = TurnGrammar(lexicon, [tool], choice="required")
        except ValueError as error:
            [keyword] = [word for word in UNSUPPORTED if f'"{word}"' in str(error)]
            assert keyword in schema
            refused[keyword] += 1
            continue
        assert not UNSUPPORTED.keys() & schema.keys()
        least = 1 + grammar.calls(0)[0][0]  # the section's begin, and the call
        budget = least + int(rng.integers(-5, 120))
        ids = turn(grammar, budget, rng)
        if budget < least:
            assert not ids and grammar.start(budget).hopeless
            hopeless += 1
            continue
        message = codec.decode_message(ids)
        assert "malformed" not in message and message["tool_calls"], message
        calls += len(message["tool_calls"])
        for call in message["tool_calls"]:
            Draft202012Validator(schema).validate(json.loads(call["function"]["arguments"]))
    print(f"{count} schemas: {calls} calls, all valid; {hopeless} budgets too small; refused: {dict(refused)}")
    assert sum(refused.values()) < 0.1 * count and 0 < hopeless < 0.2 * count


def turn(grammar: TurnGrammar, budget: int, rng: np.random.Generator) -> list[int]:
    """A turn by a model that knows nothing; nothing where none fits."""
    state, ids = grammar.start(budget), list[int]()
    while not (state.hopeless or state.done):
        ids.append(state.accept(int(rng.choice(np.flatnonzero(state.mask())))))
    assert len(ids) <= budget
    return ids
