"""Sampled tokens -> what a client is shown of them, one object a continuation.

Runs on the engine's thread, a token at a time, and hands on `Piece`s; streamed
or not, an answer is its pieces in order. Invariants: a stop string is never
shown, nor any part of it, however its tokens split it; which of several stop
strings ends a text does not depend on the split (the one that is complete
first); log-probabilities are told of tokens whose text is shown.
"""

from __future__ import annotations

import codecs
from collections import abc, deque
from dataclasses import dataclass, replace
from typing import Protocol

from openk2.chat.codec import Codec
from openk2.chat.parser import Delta, StreamParser
from openk2.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Token:
    """A sampled token, its log-probability, and the likeliest ones in its place."""

    id: int
    log_prob: float
    top: tuple[tuple[int, float], ...] = ()
    experts: tuple[tuple[int, ...], ...] = ()  # of each MoE layer; empty where nobody asked
    begin: int = 0  # of its text, in characters of the answer


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token, or the end, adds to an answer: text, parts of calls, the tokens whose text is now shown.

    `sampled` are the tokens as they came, of answers that tell them.
    """

    text: str = ""
    calls: tuple[Delta, ...] = ()  # in OpenAI's form, `index` counting those of this answer
    shown: tuple[Token, ...] = ()
    sampled: tuple[Token, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.calls or self.shown or self.sampled)


class Answer(Protocol):
    """A continuation on its way out."""

    @property
    def stop_string(self) -> str | None:
        """The one that ended it: no further token is wanted."""
        ...

    def take(self, sequence: Sequence) -> Piece:
        """What the sequence's newest token adds."""
        ...

    def close(self) -> Piece:
        """What was still withheld."""
        ...

    def reason(self, ended: str) -> str:
        """Why it ended, as OpenAI says it; `ended` is the sequence's finish_reason."""
        ...


class TextGate:
    """Text on its way out, withheld where it may begin a stop string."""

    def __init__(self, stops: abc.Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self._passed = 0  # characters let through
        self._tokens: deque[tuple[Token, int]] = deque()  # not shown yet, and where the text of each ends
        self.found: str | None = None

    def add(self, text: str, token: Token | None) -> tuple[str, tuple[Token, ...]]:
        """What may be shown now, and the tokens whose text that completes."""
        if self.found is not None:
            return "", ()
        begin = self._passed + len(self._held)
        if token is not None:
            self._tokens.append((replace(token, begin=begin), begin + len(text)))
        self._held += text
        stop = self._first_stop()
        if stop is None:
            return self._pass(len(self._held) - self._withheld())
        at, self.found = stop
        out, shown = self._pass(at)
        cut = tuple(token for token, _ in self._tokens if token.begin < self._passed)
        self._tokens.clear()
        self._held = ""
        return out, shown + cut

    def close(self) -> tuple[str, tuple[Token, ...]]:
        """No text follows: what was withheld began no stop string."""
        return self._pass(len(self._held))

    def _first_stop(self) -> tuple[int, str] | None:
        """Where the stop string begins that is complete first, the longest of those that end there."""
        places = [(self._held.find(stop), stop) for stop in self._stops]
        ends = [(at + len(stop), at, stop) for at, stop in places if at >= 0]
        return min(ends)[1:] if ends else None

    def _withheld(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = min(len(self._held), max(map(len, self._stops), default=1) - 1)
        ends = (length for length in range(longest, 0, -1))
        return next((n for n in ends if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)

    def _pass(self, length: int) -> tuple[str, tuple[Token, ...]]:
        out, self._held = self._held[:length], self._held[length:]
        self._passed += length
        shown = []
        while self._tokens and self._tokens[0][1] <= self._passed:
            shown.append(self._tokens.popleft()[0])
        return out, tuple(shown)


class ChatAnswer:
    """An assistant's turn: text and calls. Stop strings apply to the text."""

    def __init__(self, codec: Codec, stops: abc.Sequence[str] = ()) -> None:
        self._tokenizer = codec.tokenizer
        self._parser = StreamParser(codec)
        self._gate = TextGate(stops)
        self._in_text, self._called = True, False

    @property
    def stop_string(self) -> str | None:
        return self._gate.found

    def take(self, sequence: Sequence) -> Piece:
        row = sequence.tokens[-1]
        self._in_text = self._in_text and not self._tokenizer.is_control(row)
        return self._piece(self._parser.feed([row]), _newest(sequence) if self._in_text else None)

    def close(self) -> Piece:
        last = self._piece(self._parser.close(), None)
        if self._gate.found is not None:
            return last
        text, shown = self._gate.close()
        return Piece(last.text + text, last.calls, last.shown + shown)

    def reason(self, ended: str) -> str:
        return "tool_calls" if ended == "stop" and self._called else ended

    def _piece(self, deltas: abc.Sequence[Delta], token: Token | None) -> Piece:
        """Of the deltas of one token, text comes before calls."""
        text, shown = self._gate.add("".join(delta.get("content", "") for delta in deltas), token)
        calls = tuple(call for delta in deltas for call in delta.get("tool_calls", ()))
        if not calls or self._gate.found is not None:
            return Piece(text, (), shown)
        if not self._called:  # no text follows: a stop string that had begun stays unfinished
            withheld, more = self._gate.close()
            text, shown = text + withheld, shown + more
        self._called = True
        return Piece(text, calls, shown)


class TextAnswer:
    """A continuation of plain text. Control tokens are not shown."""

    def __init__(
        self, codec: Codec, stops: abc.Sequence[str] = (), *, tell_tokens: bool = False, tell_experts: bool = False
    ) -> None:
        self._tokenizer = codec.tokenizer
        self._gate = TextGate(stops)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._tell_tokens, self._tell_experts = tell_tokens or tell_experts, tell_experts

    @property
    def stop_string(self) -> str | None:
        return self._gate.found

    def take(self, sequence: Sequence) -> Piece:
        token = _newest(sequence, experts=self._tell_experts)
        control = self._tokenizer.is_control(token.id)
        text = self._utf8.decode(self._tokenizer.token_bytes(token.id), final=control)
        out, shown = self._gate.add(text, None if control else token)
        return Piece(out, (), shown, (token,) if self._tell_tokens else ())

    def close(self) -> Piece:
        text, shown = self._gate.add(self._utf8.decode(b"", final=True), None)
        if self._gate.found is not None:
            return Piece(text, (), shown)
        withheld, more = self._gate.close()
        return Piece(text + withheld, (), shown + more)

    def reason(self, ended: str) -> str:
        return ended


def _newest(sequence: Sequence, *, experts: bool = False) -> Token:
    top = tuple(sequence.top[-1]) if sequence.top else ()
    chosen = tuple(map(tuple, sequence.experts[-1].tolist())) if experts and sequence.experts else ()
    return Token(sequence.tokens[-1], sequence.log_probs[-1], top, chosen)
