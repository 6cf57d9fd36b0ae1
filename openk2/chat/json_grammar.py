"""Values of a JSON schema, token by token: what may come next, and a short way to the end from wherever they are.

The matching is llguidance's. Invariants: an ending is one that the matcher has
accepted to the last token; a schema without an ending is refused, as is one
that llguidance cannot keep exactly, by the keyword; a schema is compiled once
for as long as the lexicon remembers it. Left out: locks; a lexicon and what it
made belong to one thread.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from openk2.chat.json_examples import short_values, string_ends
from openk2.chat.json_refusals import why_not, without_notes
from openk2.chat.tokenizer import Tokenizer

# JSON as the template's `dump_json` writes it, or without the blanks: never an endless run of them. No escapes by code:
# llguidance takes a property's name so spelt for another name, under which anything may stand.
_SPELLING: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "json_allowed_escapes": '"\\bfnrt',
}
_OPTIONS = "x-guidance"  # under this key llguidance takes options from a schema, to be lenient among them
_LONGEST_ENDING = 4096  # bytes; a schema without a shorter value is refused
_LONGEST_REUSED = 64  # tokens of an earlier ending that are tried for another place
_REMEMBERED = 256  # schemas
_MOST_DIGITS = 3  # that are tried to make a multiple
# In which order an ending tries bytes: outside strings what closes, then what is short (large digits leave a lower
# bound behind sooner); inside strings the quote, then the kind of character used least so far, which leads through
# most patterns that `string_ends` does not know.
_CLOSING = b"}]"
_AFTER_NUMBER = b",}]"
_DIGITS = b"0123456789"
_OUTSIDE = b',"9876543210ntf-.[{:eE+ '


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
        self.closing = [single[byte] for byte in _CLOSING]
        self.digits = [single[byte] for byte in _DIGITS]
        self.after_number = [*(single[byte] for byte in _AFTER_NUMBER), tokenizer.im_end_id]
        self.outside = [single[byte] for byte in dict.fromkeys([*_OUTSIDE, *range(256)]) if byte in single]
        self.quote = single[ord('"')]
        self.kinds: dict[str, list[int]] = {}  # of characters: their rows
        for char in map(chr, range(32, 127)):
            if ord(char) in single and char not in '"\\':
                self.kinds.setdefault(_kind(char), []).append(single[ord(char)])
        # Beyond ASCII, and what begins an escape: only where a property's name or an option has them.
        self.others = [single[byte] for byte in [*range(128, 256), ord("\\")] if byte in single]
        self.matcher_tokens = LLTokenizer(
            TokenizerWrapper(_Plain(tokenizer, self.tokens, control)), slices=LLTokenizer.json_slices()
        )
        self._compiled: OrderedDict[str, JsonGrammar] = OrderedDict()  # by the schema's text, the latest used last
        self._formats: dict[str, bool] = {}  # whether llguidance knows them

    def compiled(self, schema: Mapping[str, Any], where: str) -> JsonGrammar:
        """The schema's grammar, from memory if it is among the latest; otherwise as `JsonGrammar` makes it."""
        text = json.dumps(schema)  # the order of the properties counts
        grammar = self._compiled.get(text) or JsonGrammar(self, schema, where)
        self._compiled[text] = grammar
        self._compiled.move_to_end(text)
        if len(self._compiled) > _REMEMBERED:
            self._compiled.popitem(last=False)
        return grammar

    def knows_format(self, name: str) -> bool:
        known = self._formats.get(name)
        if known is None:
            alone = LLMatcher.grammar_from_json_schema(json.dumps({"type": "string", "format": name}))
            known = not LLMatcher(self.matcher_tokens, alone, log_level=0).get_error()
            if len(self._formats) < _REMEMBERED:
                self._formats[name] = known
        return known

    def lets_in(self, number: float, schema: Mapping[str, Any]) -> bool:
        """Whether llguidance takes the number for a value of the schema, in one of its spellings."""
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_SPELLING)
        except ValueError:
            return False  # what is wrong is told where the whole is compiled
        matcher = LLMatcher(self.matcher_tokens, grammar, log_level=0)
        plain = json.dumps(number)
        for text in {plain, plain.removesuffix(".0"), plain + "0", f"{plain}.0", f"-{plain}"}:
            trial, ids = matcher.deep_copy(), self.tokenizer.encode(text)
            if _number(text) == number and trial.try_consume_tokens(ids) == len(ids) and trial.is_accepting():
                return True
        return False


def _number(text: str) -> float | None:
    try:
        return float(json.loads(text))
    except ValueError:
        return None


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
        schema = without_notes({key: value for key, value in schema.items() if key != _OPTIONS}, lexicon.knows_format)
        self._matcher = _matcher(lexicon, schema, where)
        encode = lexicon.tokenizer.encode
        self.multiples = "multipleOf" in json.dumps(schema)
        self.string_ends = [encode(text) for text in string_ends(schema)]
        self.short_values = [encode(text) for text in short_values(schema)]
        ending = self.start().ending()
        if ending is None:
            raise ValueError(
                f"{where}: saw a schema without a value of at most {_LONGEST_ENDING} bytes, or one too large to be kept"
            )
        self.shortest = ending

    def start(self) -> JsonState:
        return JsonState(self, self._matcher.deep_copy())


def _matcher(lexicon: Lexicon, schema: Mapping[str, Any], where: str) -> LLMatcher:
    problem = why_not(schema, lexicon.lets_in)
    if not problem:
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_SPELLING)
        except ValueError as error:  # not JSON, or too deep
            problem = str(error)
        else:
            matcher = LLMatcher(lexicon.matcher_tokens, grammar, log_level=0)
            problem = matcher.get_error()
    if problem:
        raise ValueError(f"{where}: saw a schema that cannot be kept: {' '.join(problem.split()):.200}")
    return matcher


class JsonState:
    """A value of the schema, begun."""

    def __init__(
        self, grammar: JsonGrammar, matcher: LLMatcher, in_string: bool = False, escaped: bool = False
    ) -> None:
        self._grammar, self._lexicon, self._matcher = grammar, grammar.lexicon, matcher
        self._in_string, self._escaped = in_string, escaped

    def copy(self) -> JsonState:
        return JsonState(self._grammar, self._matcher.deep_copy(), self._in_string, self._escaped)

    @property
    def complete(self) -> bool:
        """Whether it may end here."""
        return bool(self._matcher.is_accepting())

    def mask(self) -> np.ndarray:
        """Bool [V]: the tokens that may come next, none of them a control token."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        return np.unpackbits(bits, bitorder="little")[: len(self._lexicon.text)].astype(bool) & self._lexicon.text

    def advance(self, token: int) -> None:
        """Take a token that the mask allows. `ValueError` where the matcher meets one of its limits, and is of no use
        any more."""
        consumed = self._matcher.consume_token(token)
        self._check()
        assert consumed, "a token that the mask did not allow"
        for byte in self._lexicon.tokens[token]:
            if self._escaped:
                self._escaped = False
            elif byte == ord("\\"):
                self._escaped = self._in_string
            elif byte == ord('"'):
                self._in_string = not self._in_string

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"the schema is too large to be kept: {' '.join(self._matcher.get_error().split()):.200}")

    def ending(self, earlier: Sequence[int] = (), taken: int | None = None) -> list[int] | None:
        """A short way to complete the value, as tokens; None where none of at most `_LONGEST_ENDING` bytes is found.

        With `earlier`, the ending before the token `taken`, the shortest tail of it that completes this one too is
        found at a fraction of the cost, or what is left of it behind as many bytes as were taken; where neither
        does, the search is as without.
        """
        for length in [*range(min(len(earlier), _LONGEST_REUSED) + 1), len(earlier)]:
            tail = list(earlier[len(earlier) - length :])
            if (length or self.complete) and self._ends_with(tail):
                return tail
        if taken is not None and len(earlier) > _LONGEST_REUSED:
            text = b"".join(self._lexicon.tokens[token] for token in earlier)[len(self._lexicon.tokens[taken]) :]
            rest = self._lexicon.tokenizer.encode(text.decode("utf-8", "replace"))
            if self._ends_with(rest):
                return rest
        try:
            return self._searched()
        except ValueError:  # one of the matcher's limits
            return None

    def _searched(self) -> list[int] | None:
        walk, found, size, used = self.copy(), list[int](), 0, Counter[str]()
        while not walk.complete:
            step = walk._step(used)
            size += sum(len(self._lexicon.tokens[token]) for token in step)
            if not step or size > _LONGEST_ENDING:
                return None
            for token in step:
                walk.advance(token)
            found += step
        text = b"".join(self._lexicon.tokens[token] for token in found)
        merged = self._lexicon.tokenizer.encode(text.decode("utf-8", "replace"))
        return merged if len(merged) < len(found) and self._ends_with(merged) else found

    def _ends_with(self, tokens: Sequence[int]) -> bool:
        """Whether the value may go on with `tokens` and is complete behind them."""
        whole = [*tokens, self._lexicon.tokenizer.im_end_id]
        return bool(self._matcher.validate_tokens(whole) == len(whole))

    def _step(self, used: Counter[str]) -> list[int]:
        """The tokens with which a walk to the end goes on; none where none is allowed."""
        if not self._in_string:
            closing = self._first(self._lexicon.closing)
            run = self._run(self._grammar.short_values)
            return closing or run or self._last_digits() or self._first(self._lexicon.outside)
        quote = self._first([self._lexicon.quote])
        return quote or self._run(self._grammar.string_ends) or self._character(used)

    def _first(self, order: Sequence[int]) -> list[int]:
        """The first token of `order` that is allowed, if any is."""
        return next(([token] for token in order if self._matcher.validate_tokens([token]) == 1), [])

    def _run(self, runs: Sequence[list[int]]) -> list[int]:
        """The first run of tokens that is allowed as a whole."""
        return next((run for run in runs if self._matcher.validate_tokens(run) == len(run)), [])

    def _last_digits(self) -> list[int]:
        """A few digits with which a number is a multiple of what it has to be, where it is none yet."""
        if not self._grammar.multiples or self._first(self._lexicon.after_number):
            return []
        for count in range(1, _MOST_DIGITS + 1 if self._first(self._lexicon.digits) else 0):
            for digits in product(self._lexicon.digits, repeat=count):
                if any(self._matcher.validate_tokens([*digits, row]) > count for row in self._lexicon.after_number):
                    return list(digits)
        return []

    def _character(self, used: Counter[str]) -> list[int]:
        for kind in sorted(self._lexicon.kinds, key=used.__getitem__):
            if token := self._first(self._lexicon.kinds[kind]):
                used[kind] += 1
                return token
        return self._first(self._lexicon.others)
