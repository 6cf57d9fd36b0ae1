"""What a turn may be, token by token: text, then K2's tool-call section, with arguments that obey their JSON schema.

The section is a machine of ours beside the parser that reads it: control tokens
where the format has them, ids `functions.NAME:INDEX` of declared tools with the
tokens that the codec would write, indices that go on from the dialogue's. The
arguments are values of `json_grammar`. Invariant: what is still needed to end
the turn legally fits into what is left of the budget, so that a call is never
cut; where a token would break it, the shortest known ending takes its place.
Left out: sampling (the engine's).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openk2.chat import vocabulary as vocab
from openk2.chat.json_grammar import JsonGrammar, Lexicon
from openk2.chat.json_refusals import num_objects
from openk2.chat.parser import State
from openk2.chat.template import CallId
from openk2.protocols import ToolSpec

__all__ = ["Lexicon", "Turn", "TurnGrammar"]

_MOST_OBJECTS = 16_384  # of all schemas: what compiles them is waited for by others
_AFTER_ARGUMENTS = 3  # end of call, end of section, end of turn


@dataclass(frozen=True)
class _Tool:
    name: str
    arguments: JsonGrammar

    @classmethod
    def of(cls, lexicon: Lexicon, name: str, function: Mapping[str, Any]) -> _Tool:
        where = f"tools: {name}: parameters"
        return cls(name, lexicon.compiled(_object(function.get("parameters"), where), where))

    def call(self, lexicon: Lexicon, index: int) -> tuple[int, _Tool, list[int]]:
        """What its shortest call and the end of the turn take, itself, and the tokens of the call's id."""
        ids = lexicon.tokenizer.encode(str(CallId(self.name, index)))
        return 1 + len(ids) + 1 + len(self.arguments.shortest) + _AFTER_ARGUMENTS, self, ids


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
        size = sum(num_objects(function.get("parameters") or {}) for function in named.values())
        if size > _MOST_OBJECTS:
            raise ValueError(f"tools: saw {size} objects in their schemas, expected at most {_MOST_OBJECTS} in all")
        self.must_call = choice not in ("auto", "none")
        offered = {} if choice == "none" else named
        self.tools = tuple(_Tool.of(lexicon, name, function) for name, function in offered.items())
        self.response = None if response is None else lexicon.compiled(response, "response_format")
        self._calls: dict[int, list[tuple[int, _Tool, list[int]]]] = {}

    def calls(self, number: int) -> list[tuple[int, _Tool, list[int]]]:
        """Of the turn's call `number`, for each tool: see `_Tool.call`; the shortest first."""
        if number not in self._calls:
            made = [tool.call(self.lexicon, self.first_call_index + number) for tool in self.tools]
            self._calls[number] = sorted(made, key=lambda call: call[0])
        return self._calls[number]

    def start(self, budget: int) -> Turn:
        """A turn of at most `budget` tokens, the end of turn included."""
        return Turn(self, budget)


def _object(parameters: Any, where: str) -> dict[str, Any]:
    """Arguments are an object; nothing declared is one without members."""
    if not parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    kind = parameters.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise ValueError(f"{where}: saw type {kind!r}, expected object, which arguments are")
    return {**parameters, "type": "object"}


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
            not self._fits(budget - 1) if grammar.must_call else len(self._ending) + bool(self._value) > budget
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
            begin = [self._begin] if not answering and self._fits(self.remaining - 1) else []
            return begin + ([self._stops[0]] if self._value is not None and self._value.complete else [])
        if state is State.SECTION:
            more = self._num_calls == 0 or self._grammar.parallel
            return [self._call] * bool(more and self._fits(self.remaining)) + [self._end] * (self._num_calls > 0)
        if state is State.HEADER:
            return sorted({ids[0] if ids else self._argument for _, ids in self._candidates})
        if state is State.ARGUMENTS:
            assert self._value is not None
            return [self._close] if self._value.complete else []
        return [self._stops[0]]

    def _fitting(self, budget: int) -> list[tuple[_Tool, list[int]]]:
        """The tools of which the shortest call and the end of the turn fit, each with its id's tokens."""
        return [(tool, ids) for least, tool, ids in self._grammar.calls(self._num_calls) if least <= budget]

    def _fits(self, budget: int) -> bool:
        """Whether any tool does: asked before each token of a text."""
        calls = self._grammar.calls(self._num_calls)
        return bool(calls) and calls[0][0] <= budget

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
        ending = self._ending[1:] if follows else ahead.ending(self._ending, token)
        if ending is not None and len(ending) + after > self.remaining - 1 and not follows:
            ending = ahead.ending()  # perhaps a shorter one
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
