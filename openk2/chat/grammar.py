"""What a turn may be, token by token: text, then K2's tool-call section, with arguments that obey their JSON schema.

The section is a machine of ours beside the parser that reads it: control tokens
where the format has them, ids `functions.NAME:INDEX` of declared tools with the
tokens that the codec would write, indices that go on from the dialogue's. The
arguments are llguidance's, one matcher a call. Invariant: what is still needed
to end the turn legally fits into what is left of the budget, so that a call is
never cut; where a token would break it, the shortest known ending takes its
place. Left out: sampling (the engine's), and schemas that llguidance cannot
keep exactly, which are refused by the keyword.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from openk2.chat import vocabulary as vocab
from openk2.chat.parser import State
from openk2.chat.template import CallId
from openk2.chat.tokenizer import Tokenizer
from openk2.protocols import ToolSpec

# JSON as the template's `dump_json` writes it, or without the blanks: never an endless run of them.
_SEPARATORS: Any = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_AFTER_ARGUMENTS = 3  # end of call, end of section, end of turn
_LONGEST_ENDING = 4096  # bytes; a schema whose shortest value is longer is refused
# In which order an ending tries bytes: outside strings what closes, then what is short (large digits leave a lower
# bound behind sooner); inside strings the quote, then the kind of character used least so far, which leads through any
# pattern sooner or later.
_OUTSIDE = b'}],"9876543210ntf-.[{:eE+ '


class Lexicon:
    """A tokenizer as llguidance sees it; made once for a vocabulary (half a second for K2's)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        rows = range(tokenizer.vocab_size)
        control = [row for row in rows if tokenizer.is_control(row)]
        self.tokenizer = tokenizer
        self.text = np.ones(tokenizer.vocab_size, dtype=bool)  # rows of text
        self.text[control] = False
        self.tokens = [tokenizer.decode_bytes([row]) for row in rows]
        single = {piece[0]: row for row, piece in enumerate(self.tokens) if len(piece) == 1 and self.text[row]}
        self.outside = [single[byte] for byte in dict.fromkeys([*_OUTSIDE, *range(256)]) if byte in single]
        self.quote = single[ord('"')]
        self.kinds: dict[str, list[int]] = {}  # of characters: their rows
        for char in map(chr, range(32, 127)):
            if ord(char) in single and char not in '"\\':
                self.kinds.setdefault(_kind(char), []).append(single[ord(char)])
        self.others = [single[byte] for byte in range(128, 256) if byte in single]  # of characters beyond ASCII
        self.matcher_tokens = LLTokenizer(
            TokenizerWrapper(_Plain(tokenizer, self.tokens, control)), slices=LLTokenizer.json_slices()
        )


def _kind(char: str) -> str:
    if char.isdigit():
        return "digit"
    return "upper" if char.isupper() else "lower" if char.islower() else char


class _Plain:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, tokens: Sequence[bytes], control: Sequence[int]) -> None:
        self.eos_token_id, self.tokens, self.special_token_ids = tokenizer.im_end_id, tokens, control
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode())


class JsonGrammar:
    """A JSON schema, compiled. ValueError, naming `where` and the keyword, for one that cannot be kept exactly."""

    def __init__(self, lexicon: Lexicon, schema: Mapping[str, Any], where: str) -> None:
        self.lexicon = lexicon
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_SEPARATORS)
        self._matcher = LLMatcher(lexicon.matcher_tokens, grammar, log_level=0)
        if self._matcher.is_error():
            problem = " ".join(self._matcher.get_error().split())
            raise ValueError(f"{where}: saw a schema that cannot be kept: {problem:.200}")
        ending = self.start().ending()
        if ending is None:
            raise ValueError(f"{where}: saw a schema without a value of at most {_LONGEST_ENDING} bytes")
        self.shortest = ending

    def start(self) -> JsonState:
        return JsonState(self.lexicon, self._matcher.deep_copy())


class JsonState:
    """A value of the schema, begun."""

    def __init__(self, lexicon: Lexicon, matcher: LLMatcher, in_string: bool = False, escaped: bool = False) -> None:
        self._lexicon, self._matcher, self._in_string, self._escaped = lexicon, matcher, in_string, escaped

    def copy(self) -> JsonState:
        return JsonState(self._lexicon, self._matcher.deep_copy(), self._in_string, self._escaped)

    @property
    def complete(self) -> bool:
        """Whether it may end here."""
        return bool(self._matcher.is_accepting())

    def mask(self) -> np.ndarray:
        """Bool [V]: the tokens that may come next, none of them a control token."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little")[: len(self._lexicon.text)].astype(bool) & self._lexicon.text

    def allows(self, token: int) -> bool:
        return bool(self._lexicon.text[token]) and self._matcher.validate_tokens([token]) == 1

    def advance(self, token: int) -> None:
        consumed = self._matcher.consume_token(token)
        assert consumed, "a token that the mask did not allow"
        for byte in self._lexicon.tokens[token]:
            if self._escaped:
                self._escaped = False
            elif byte == ord("\\"):
                self._escaped = self._in_string
            elif byte == ord('"'):
                self._in_string = not self._in_string

    def ending(self) -> list[int] | None:
        """A short way to complete the value, as tokens; None where none of at most `_LONGEST_ENDING` bytes is found."""
        walk, found, used = self.copy(), list[int](), Counter[str]()
        while not walk.complete:
            token = walk._inside(used) if walk._in_string else walk._first(self._lexicon.outside)
            if token is None or len(found) == _LONGEST_ENDING:
                return None
            walk.advance(token)
            found.append(token)
        text = b"".join(self._lexicon.tokens[token] for token in found)
        merged = self._lexicon.tokenizer.encode(text.decode("utf-8", "replace"))
        fits = len(merged) < len(found) and self._matcher.validate_tokens(merged) == len(merged)
        return merged if fits else found

    def _first(self, order: Sequence[int]) -> int | None:
        return next((token for token in order if self.allows(token)), None)

    def _inside(self, used: Counter[str]) -> int | None:
        """A token that goes on with a string, or ends it where that is allowed."""
        if self.allows(self._lexicon.quote):
            return self._lexicon.quote
        for kind in sorted(self._lexicon.kinds, key=used.__getitem__):
            token = self._first(self._lexicon.kinds[kind])
            if token is not None:
                used[kind] += 1
                return token
        return self._first(self._lexicon.others)


@dataclass(frozen=True)
class _Tool:
    name: str
    arguments: JsonGrammar

    def header(self, lexicon: Lexicon, index: int) -> list[int]:
        """The tokens of its call's id."""
        return lexicon.tokenizer.encode(str(CallId(self.name, index)))


class TurnGrammar:
    """What an assistant's turn may be, for one request.

    `choice` is "auto" (text, calls or both), "none" (text), "required" (at least one call) or a tool's name (one call
    of it); `response` is a schema that the text has to obey. `first_call_index` counts the dialogue's calls so far.
    """

    def __init__(
        self,
        lexicon: Lexicon,
        tools: Sequence[ToolSpec] = (),
        *,
        choice: str = "auto",
        parallel: bool = True,
        first_call_index: int = 0,
        response: Mapping[str, Any] | None = None,
    ) -> None:
        self.lexicon, self.parallel, self.first_call_index = lexicon, parallel, first_call_index
        named = {spec["function"]["name"]: spec["function"] for spec in tools}
        if choice not in ("auto", "none", "required"):
            if choice not in named:
                raise ValueError(f"tool_choice: saw {choice!r}, expected auto, none, required or a declared name")
            named, self.parallel = {choice: named[choice]}, False
        if choice == "required" and not named:
            raise ValueError("tool_choice: saw required without tools, expected at least one")
        self.must_call = choice not in ("auto", "none")
        self.tools = (
            ()
            if choice == "none"
            else tuple(
                _Tool(name, JsonGrammar(lexicon, _object(function.get("parameters")), f"tools: {name}: parameters"))
                for name, function in named.items()
            )
        )
        self.response = None if response is None else JsonGrammar(lexicon, response, "response_format")

    def start(self, budget: int) -> Turn:
        """A turn of at most `budget` tokens, the end of turn included."""
        return Turn(self, budget)


def _object(parameters: Any) -> dict[str, Any]:
    """Arguments are an object whatever else is declared; nothing declared is an object without members."""
    if not parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **parameters}


class Turn:
    """One sequence's turn: `mask` before a token is drawn, `accept` after. `hopeless` says that no legal turn fits."""

    def __init__(self, grammar: TurnGrammar, budget: int) -> None:
        special = grammar.lexicon.tokenizer.special
        self._begin, self._end = special[vocab.SECTION_BEGIN], special[vocab.SECTION_END]
        self._call, self._argument, self._close = (
            special[name] for name in (vocab.CALL_BEGIN, vocab.ARGUMENT_BEGIN, vocab.CALL_END)
        )
        self._stops = (special[vocab.IM_END], special[vocab.EOS])
        self._grammar, self._lexicon = grammar, grammar.lexicon
        self._state, self.remaining, self._num_calls = State.CONTENT, budget, 0
        self._candidates: list[tuple[_Tool, list[int]]] = []  # what is left of their ids
        response = None if grammar.must_call else grammar.response
        # The JSON being written, in a response or in arguments, and how it would end; without one, None.
        self._value = response.start() if response else None
        self._ending: list[int] = list(response.shortest) if response else []
        self._begun = False
        self.hopeless = budget < 1 or (
            not self._fitting(budget - 1) if grammar.must_call else len(self._ending) + bool(self._value) > budget
        )

    @property
    def done(self) -> bool:
        return self._state is State.DONE

    def mask(self) -> np.ndarray:
        """Bool [V]: the tokens that may come next."""
        if self._state is State.CONTENT and self._value is None and not self._grammar.must_call:
            allowed = self._lexicon.text.copy()
            allowed[[*self._stops, *self._controls()]] = True
            return allowed
        allowed = np.zeros(len(self._lexicon.text), dtype=bool) if self._value is None else self._value.mask()
        allowed[self._controls()] = True
        return allowed

    def _controls(self) -> list[int]:
        """The tokens that the format itself has here."""
        state = self._state
        if state is State.CONTENT:
            answering = self._begun and self._value is not None
            begin = [self._begin] if not answering and self._fitting(self.remaining - 1) else []
            return begin + ([self._stops[0]] if self._value is not None and self._value.complete else [])
        if state is State.SECTION:
            more = self._num_calls == 0 or self._grammar.parallel
            return [self._call] * bool(more and self._fitting(self.remaining)) + [self._end] * (self._num_calls > 0)
        if state is State.HEADER:
            return sorted({ids[0] if ids else self._argument for _, ids in self._candidates})
        if state is State.ARGUMENTS:
            assert self._value is not None
            return [self._close] if self._value.complete else []
        return [self._stops[0]]

    def _fitting(self, budget: int) -> list[tuple[_Tool, list[int]]]:
        """The tools of which the shortest call and the end of the turn fit, each with its id's tokens."""
        index = self._grammar.first_call_index + self._num_calls
        headers = ((tool, tool.header(self._lexicon, index)) for tool in self._grammar.tools)
        return [
            (tool, ids)
            for tool, ids in headers
            if 1 + len(ids) + 1 + len(tool.arguments.shortest) + _AFTER_ARGUMENTS <= budget
        ]

    def accept(self, token: int) -> int:
        """Take a token that `mask` allows, or the ending's next where it leaves too little; returns what stands."""
        assert not self.done and self.remaining > 0
        if self._value is not None and self._lexicon.text[token]:
            token = self._accept_in_value(token)
        else:
            self._accept_control(token)
        self.remaining -= 1
        self._begun = True
        return token

    def _accept_in_value(self, token: int) -> int:
        assert self._value is not None
        after = _AFTER_ARGUMENTS if self._state is State.ARGUMENTS else 1
        ahead = self._value.copy()
        ahead.advance(token)
        follows = bool(self._ending) and self._ending[0] == token
        ending = self._ending[1:] if follows else ahead.ending()
        if ending is not None and len(ending) + after <= self.remaining - 1:
            self._value, self._ending = ahead, ending
            return token
        if not self._ending:  # complete, and nothing more fits
            token = self._close if self._state is State.ARGUMENTS else self._stops[0]
            self._accept_control(token)
            return token
        token, *self._ending = self._ending
        self._value.advance(token)
        return token

    def _accept_control(self, token: int) -> None:
        if token in self._stops:
            self._state = State.DONE
        elif token == self._begin:
            self._state, self._value = State.SECTION, None
        elif token == self._call:
            self._state, self._candidates = State.HEADER, self._fitting(self.remaining)
        elif token == self._argument and self._state is State.HEADER:
            tool = next(tool for tool, ids in self._candidates if not ids)
            self._state, self._value, self._ending = State.ARGUMENTS, tool.arguments.start(), tool.arguments.shortest
        elif token == self._close:
            self._state, self._value, self._num_calls = State.SECTION, None, self._num_calls + 1
        elif token == self._end:
            self._state = State.AFTER
        elif self._state is State.HEADER:
            self._candidates = [(tool, ids[1:]) for tool, ids in self._candidates if ids and ids[0] == token]
