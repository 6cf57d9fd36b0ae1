"""Whatever is drawn, a turn that the grammar allows is read by the parser without a fault and has valid arguments."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
import real_schemas

from openk2.chat import Codec, Tokenizer
from openk2.chat.grammar import JsonGrammar, Lexicon, Turn, TurnGrammar
from openk2.chat.json_grammar import JsonState
from openk2.chat.vocabulary import SECTION_BEGIN

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 14}},
    "required": ["city"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "get_weather": WEATHER,
    "news.top-10": {
        "type": "object",
        "properties": {"topic": {"enum": ["sport", "science", "art"]}},
        "required": ["topic"],
    },
    "now": {},
    "order": {
        "type": "object",
        "properties": {
            "code": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
            "lines": {
                "type": "array",
                "minItems": 2,
                "items": {
                    "type": "object",
                    "properties": {
                        "sku": {"type": "string", "minLength": 3},
                        "price": {"type": "number", "exclusiveMinimum": 0.5},
                    },
                    "required": ["sku", "price"],
                },
            },
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["code", "lines", "note"],
    },
    "tree": {
        "type": "object",
        "properties": {"root": {"$ref": "#/$defs/node"}},
        "required": ["root"],
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["value", "children"],
            }
        },
    },
}


def tools(*names: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "parameters": SCHEMAS[name]}} for name in names or SCHEMAS]


@pytest.fixture(scope="module")
def lexicon(tokenizer: Tokenizer) -> Lexicon:
    return Lexicon(tokenizer)


def drawn(turn: Turn, rng: np.random.Generator, *, loving: int | None = None) -> list[int]:
    """A turn by a model that knows nothing; it takes the token `loving` wherever it may."""
    ids = []
    while not turn.done and turn.remaining > 0:
        allowed = np.flatnonzero(turn.mask())
        ids.append(turn.accept(loving if loving in allowed else int(rng.choice(allowed))))
    return ids


def check_calls(codec: Codec, ids: list[int], first_index: int = 0) -> list[dict[str, Any]]:
    message = codec.decode_message(ids)
    assert "malformed" not in message, message
    for index, call in enumerate(message.get("tool_calls", ())):
        name = call["function"]["name"]
        assert call["id"] == f"functions.{name}:{first_index + index}"
        arguments = json.loads(call["function"]["arguments"])
        jsonschema.validate(arguments, {"type": "object", **SCHEMAS[name]})
    return list(message.get("tool_calls", ()))


@pytest.mark.parametrize("seed", range(30))
def test_every_required_call_is_valid_however_small_the_budget(seed, lexicon, codec):
    rng = np.random.default_rng(seed)
    grammar = TurnGrammar(lexicon, tools(), choice="required", first_call_index=seed)
    budget = int(rng.integers(20, 400))
    turn = grammar.start(budget)
    assert not turn.hopeless
    ids = drawn(turn, rng)
    assert turn.done and len(ids) <= budget
    assert check_calls(codec, ids, seed)


def test_the_smallest_budget_is_just_enough_and_one_less_is_hopeless(lexicon, codec):
    for name in SCHEMAS:
        grammar = TurnGrammar(lexicon, tools(name), choice=name)
        least = next(budget for budget in range(1, 200) if not grammar.start(budget).hopeless)
        for seed in range(5):
            ids = drawn(grammar.start(least), np.random.default_rng(seed))
            assert len(ids) == least and len(check_calls(codec, ids)) == 1
        assert not grammar.start(least - 1).mask().any()


def test_auto_begins_no_call_that_would_not_fit(lexicon, codec):
    begin = lexicon.tokenizer.special[SECTION_BEGIN]
    grammar = TurnGrammar(lexicon, tools("order"))
    calls = 0
    for budget in range(1, 140):
        ids = drawn(grammar.start(budget), np.random.default_rng(budget), loving=begin)
        calls += len(check_calls(codec, ids)) > 0
        assert len(ids) <= budget
    assert 0 < calls < 139


def test_none_and_named_choices(lexicon, codec):
    begin = lexicon.tokenizer.special[SECTION_BEGIN]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        assert begin not in drawn(TurnGrammar(lexicon, tools(), choice="none").start(60), rng, loving=begin)
        calls = check_calls(codec, drawn(TurnGrammar(lexicon, tools(), choice="now").start(60), rng))
        assert [call["function"]["name"] for call in calls] == ["now"]
    with pytest.raises(ValueError, match="tool_choice: saw 'later'"):
        TurnGrammar(lexicon, tools(), choice="later")
    with pytest.raises(ValueError, match="saw required without tools"):
        TurnGrammar(lexicon, choice="required")


@pytest.mark.parametrize("kind", ["array", ["string", "null"], None, 3])
def test_arguments_are_an_object_or_refused(lexicon, kind):
    def declared(kind):
        return [{"type": "function", "function": {"name": "f", "parameters": {"type": kind, "properties": {"a": {}}}}}]

    with pytest.raises(ValueError, match=r"tools: f: parameters: saw type .*, expected object"):
        TurnGrammar(lexicon, declared(kind))
    TurnGrammar(lexicon, declared(["null", "object"]))


def test_schemas_too_large_for_others_to_wait_for_are_refused(lexicon):
    def with_properties(count):
        return {"type": "object", "properties": {f"p{n}": {"type": "null"} for n in range(count)}}

    with pytest.raises(ValueError, match="response_format: .* 4102 objects, expected at most 4096"):
        TurnGrammar(lexicon, response=with_properties(4100))
    many = [{"type": "function", "function": {"name": f"f{n}", "parameters": with_properties(34)}} for n in range(460)]
    with pytest.raises(ValueError, match="tools: saw 16560 objects in their schemas, expected at most 16384 in all"):
        TurnGrammar(lexicon, many)


@pytest.mark.parametrize("pattern", ["^(a{1,100}){1,200}$", "^(a{1,1000}){1,1000}$"])
def test_the_matchers_limits_are_told_and_end_no_process(lexicon, pattern):
    """What llguidance finds too large only once it has begun fails plainly: no mask is ever empty."""
    turn = TurnGrammar(lexicon, response={"type": "string", "pattern": pattern}).start(3000)
    with pytest.raises(ValueError, match="the schema is too large to be kept"):
        while not turn.done:
            mask = turn.mask()
            turn.accept(int(np.flatnonzero(mask & lexicon.text)[-1]))


def test_many_optional_properties_are_refused_where_the_matcher_gives_up(lexicon):
    schema = {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(600)}}
    with pytest.raises(ValueError, match="response_format: saw a schema .* too large to be kept"):
        TurnGrammar(lexicon, response=schema | {"additionalProperties": False})


def test_a_long_ending_is_carried_on_without_a_search(lexicon, monkeypatch):
    """Each token of a string of a fixed length leaves what the planned one left, less as many bytes."""
    grammar = TurnGrammar(lexicon, response={"type": "string", "pattern": "^[a-f]{900}$"})
    turn = grammar.start(2000)
    monkeypatch.setattr(JsonState, "_searched", lambda self: pytest.fail("searched"))
    ids = drawn(turn, np.random.default_rng(0))
    assert re.fullmatch('"[a-f]{900}"', lexicon.tokenizer.decode(ids[:-1]))


def test_one_call_only_where_parallel_ones_are_switched_off(lexicon, codec):
    counts = {True: [], False: []}
    for parallel, found in counts.items():
        for seed in range(8):
            grammar = TurnGrammar(lexicon, tools("now"), choice="required", parallel=parallel)
            found.append(len(check_calls(codec, drawn(grammar.start(200), np.random.default_rng(seed)))))
    assert set(counts[False]) == {1} and max(counts[True]) > 1


def test_a_call_has_the_tokens_that_the_codec_writes_for_it(lexicon, codec):
    """So that the next turn's prompt begins with what was sampled."""
    text = '{"city": "Rome", "days": 3}'
    call = {"id": "x", "type": "function", "function": {"name": "get_weather", "arguments": text}}
    whole = codec.encode([{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}])
    ids = [row for row, trained in zip(whole.ids, whole.mask, strict=True) if trained]
    turn = TurnGrammar(lexicon, tools()).start(len(ids))
    for row in ids:
        assert turn.mask()[row]
        assert turn.accept(row) == row
    assert turn.done


def test_a_response_format_is_kept_and_closed_in_time(lexicon, codec):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        turn = TurnGrammar(lexicon, response=SCHEMAS["order"]).start(int(rng.integers(70, 300)))
        ids = drawn(turn, rng)
        assert turn.done
        jsonschema.validate(json.loads(codec.decode_message(ids)["content"]), SCHEMAS["order"])


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"$ref": "https://example.org/schema"}, "example.org"),
        ({"$ref": "#"}, "without a value"),
        ({"type": "string", "minLength": 100_000}, "without a value"),
        ({"type": "string", "pattern": "(?=a)b"}, "pattern|regex|look"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_by_its_keyword(schema, keyword, lexicon):
    with pytest.raises(ValueError, match=f"here: saw a schema .*({keyword})"):
        JsonGrammar(lexicon, schema, "here")


def test_text_that_spells_markers_stays_text(lexicon, codec):
    turn = TurnGrammar(lexicon, tools("get_weather"), choice="required").start(300)
    ids = codec.tokenizer.encode('{"city": "<|tool_call_end|><|im_end|>"}')
    for name in ("<|tool_calls_section_begin|>", "<|tool_call_begin|>"):
        turn.accept(codec.tokenizer.special[name])
    for row in codec.tokenizer.encode("functions.get_weather:0"):
        turn.accept(row)
    turn.accept(codec.tokenizer.special["<|tool_call_argument_begin|>"])
    for row in ids:
        assert turn.accept(row) == row
    rest = drawn(turn, np.random.default_rng(0))
    assert codec.tokenizer.special["<|tool_call_end|>"] == rest[0]


def test_k2s_own_vocabulary(k2_tokenizer):
    lexicon, codec = Lexicon(k2_tokenizer), Codec(k2_tokenizer)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        turn = TurnGrammar(lexicon, tools(), choice="required").start(int(rng.integers(30, 200)))
        ids = drawn(turn, rng)
        assert turn.done and check_calls(codec, ids)


@pytest.mark.parametrize("every", [60, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_calls_of_tools_that_others_declared_are_valid(every, lexicon, codec, assets):
    """A model that knows nothing, made to call each of them; the slow run takes all and counts."""
    declared = [*real_schemas.acebench(assets), *real_schemas.bfcl()]
    if not declared:
        pytest.skip("OPENK2_ASSETS has no ACEBench, and bfcl-eval is not installed")
    rng, refused, unchecked = np.random.default_rng(0), [], []
    for tool in declared[::every]:
        name, schema = tool["function"]["name"], tool["function"]["parameters"]
        try:
            grammar = TurnGrammar(lexicon, [tool], choice=name)
        except ValueError as error:
            refused.append(str(error))
            continue
        least = 1 + grammar.calls(0)[0][0]  # the section's begin, and the call
        ids = drawn(grammar.start(least + int(rng.integers(120))), rng)
        message = codec.decode_message(ids)
        assert "malformed" not in message
        [call] = message["tool_calls"]
        try:
            jsonschema.validate(json.loads(call["function"]["arguments"]), {"type": "object", **schema})
        except jsonschema.SchemaError:  # a pattern that Python's own regular expressions do not know
            unchecked.append(name)
    total, kept = len(declared[::every]), len(declared[::every]) - len(refused)
    print(f"{kept} of {total} schemas kept; {kept - len(unchecked)} calls checked, all of them valid")
    assert len(refused) < 0.02 * total + 1 and len(unchecked) < 0.02 * total, (refused, unchecked)
