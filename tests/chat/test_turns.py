"""Any dialogue, any turn, any split: streaming is parsing the whole, text stays text, and a turn encodes to itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from chat_dialogues import HOSTILE, NAMES, SPECIAL_NAMES, dialogues
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import merged, stream

from openk2.chat import Codec, Tokenizer
from openk2.chat.grammar import Lexicon, Turn, TurnGrammar
from openk2.chat.vocabulary import SECTION_BEGIN

PARAMETERS: list[dict[str, Any]] = [
    {},
    {"type": "object"},
    {"type": "object", "properties": {"<|im_end|>": {"type": "string"}}, "required": ["<|im_end|>"]},
    {"type": "object", "properties": {"x": {"enum": SPECIAL_NAMES}, "y": {"type": "string"}}, "required": ["x", "y"]},
    {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}}, "required": ["a"]},
    {"type": "object", "properties": {"n": {"type": "number"}}, "additionalProperties": {"type": "string"}},
]
SOUP = ["functions.", "get_weather", ":0", "call_1", '{"a": ', "1}", "🙂", " ", "\n", "<|im", "é", *SPECIAL_NAMES]


class Case(NamedTuple):
    tools: list[dict[str, Any]]
    messages: list[dict[str, Any]]
    choice: str | None  # of a legal turn; None for one of whatever tokens
    soup: list[str | int]
    budget: int
    seed: int
    cuts: list[int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    names = draw(st.lists(NAMES, min_size=1, max_size=2, unique=True))
    tools = [
        {"name": name, "description": draw(HOSTILE), "parameters": draw(st.sampled_from(PARAMETERS))} for name in names
    ]
    return Case(
        [{"type": "function", "function": tool} for tool in tools],
        draw(dialogues()),
        draw(st.sampled_from(["auto", "auto", "required", names[0], "none", None, None, None])),
        draw(st.lists(st.one_of(st.sampled_from(SOUP), st.integers(0, 1023)), min_size=1, max_size=20)),
        draw(st.integers(10, 150)),
        draw(st.integers(0, 2**32 - 1)),
        draw(st.lists(st.integers(0, 90), max_size=6)),
    )


def sampled(turn: Turn, tokenizer: Tokenizer, rng: np.random.Generator) -> list[int]:
    """A turn by a model that loves to spell control tokens, and to call."""
    ids, spelling, begin = list[int](), list[int](), tokenizer.special[SECTION_BEGIN]
    while not (turn.hopeless or turn.done) and turn.remaining > 0:
        mask = turn.mask()
        if not spelling and rng.random() < 0.1:
            spelling = tokenizer.encode(str(rng.choice(SPECIAL_NAMES)))
        wanted = begin if mask[begin] and rng.random() < 0.3 else spelling.pop(0) if spelling else -1
        ids.append(turn.accept(wanted if wanted >= 0 and mask[wanted] else int(rng.choice(np.flatnonzero(mask)))))
    return ids


def blanked(value: Any, key: str = "") -> Any:
    """The same dialogue with harmless words in every field that users, tools or models fill."""
    if isinstance(value, list):
        return [blanked(item, key) for item in value]
    if key in ("arguments", "parameters", "malformed"):
        return {}
    if isinstance(value, dict):
        return {name: blanked(item, name) for name, item in value.items()}
    return value if key in ("role", "type") or not isinstance(value, str) else "x"


def controls(codec: Codec, ids: Sequence[int]) -> list[int]:
    return [row for row in ids if codec.tokenizer.is_control(row)]


def is_canonical(codec: Codec, ids: Sequence[int]) -> bool:
    """Whether each run of text has the tokens that the tokenizer writes."""
    runs: list[list[int]] = [[]]
    for row in ids:
        if codec.tokenizer.is_control(row):
            runs.append([])
        else:
            runs[-1].append(row)
    return all(codec.tokenizer.encode(codec.tokenizer.decode(run)) == run for run in runs)


def check_legal(codec: Codec, grammar: TurnGrammar, case: Case, ids: list[int], message: dict[str, Any]) -> bool:
    """Encoding the message gives the turn back, if its text is canonical; that spelling is legal in any case."""
    assert "malformed" not in message
    prompt = codec.encode(case.messages, case.tools, add_generation_prompt=True).ids
    whole = codec.encode([*case.messages, message], case.tools).ids
    assert whole[: len(prompt)] == prompt
    again = list(whole[len(prompt) :])
    assert codec.decode_message(again) == message
    turn = grammar.start(len(again) + 8)
    assert [turn.accept(row) for row in again] == again and turn.done
    canonical = ids[-1] in codec.stop_ids and is_canonical(codec, ids)
    if canonical:
        assert again[:-1] == ids[:-1]
    return canonical


@pytest.mark.parametrize("examples", [200, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_streaming_is_the_whole_and_a_turn_encodes_to_itself(examples, tokenizer, codec):
    lexicon, seen = Lexicon(tokenizer), Counter[str]()

    # The same cases each time: the shares below are theirs.
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(cases())
    def check(case: Case) -> None:
        first = sum(len(message.get("tool_calls") or ()) for message in case.messages)
        parts = (tokenizer.encode(part, allow_special=True) if isinstance(part, str) else [part] for part in case.soup)
        ids = [row for part in parts for row in part]
        if case.choice is not None:
            grammar = TurnGrammar(lexicon, case.tools, choice=case.choice, first_call_index=first)
            ids = sampled(grammar.start(case.budget), tokenizer, np.random.default_rng(case.seed))
            assert len(ids) <= case.budget
        message = codec.decode_message(ids)
        deltas, _ = stream(codec, ids, case.cuts)
        assert merged(deltas) == {key: part for key, part in message.items() if key != "malformed"}
        dialogue = [*case.messages, message]
        assert controls(codec, codec.encode(dialogue, case.tools).ids) == controls(
            codec, codec.encode(blanked(dialogue), blanked(case.tools)).ids
        )
        seen["calls"] += len(message.get("tool_calls", ()))
        seen["malformed" if "malformed" in message else "well-formed"] += 1
        if case.choice is not None and ids:
            seen["legal"] += 1
            seen["legal and canonical"] += check_legal(codec, grammar, case, ids, message)

    check()
    print(f"{examples} cases: {dict(seen)}")
    assert min(seen["calls"], seen["legal"]) > 0.1 * examples and seen["malformed"] > 0.05 * examples
    assert seen["legal and canonical"] > 0.02 * examples
