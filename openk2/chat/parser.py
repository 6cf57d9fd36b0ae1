"""Sampled token ids -> assistant message, as they arrive.

A pure machine over ids: the state after n ids does not depend on how they
were split, so streaming and parsing the whole are one code path. Invariants:
control tokens never show in content, names or arguments, whatever the model
wrote; no character is emitted before its bytes are complete; nothing is
capped; nothing a model writes raises. Text that merely spells a marker with
ordinary tokens is text. Left out: checking arguments against schemas (the
environments' concern).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from openk2.chat import vocabulary as vocab
from openk2.chat.template import CallId
from openk2.protocols import Message

if TYPE_CHECKING:
    from openk2.chat.codec import Codec

Delta = dict[str, Any]

# What models and servers write instead of `functions.NAME:IDX`: no prefix, an endless index; other separators, none.
_LOOSE = re.compile(r"(?:functions\.)?(?P<name>.+):[0-9]+", re.DOTALL)
_OTHER_SEPARATORS = re.compile(r"functions[._]?(?P<name>.*?[^\d:_])[:_]?[0-9]*", re.DOTALL)


class State(Enum):
    """Where in a turn a token stands."""

    CONTENT = auto()  # the text before the calls
    SECTION = auto()  # in the call section, between calls
    HEADER = auto()  # in a call's id
    ARGUMENTS = auto()
    AFTER = auto()  # behind the call section
    DONE = auto()  # behind the end of turn


def call_name(id_text: str) -> tuple[str, bool]:
    """The tool named by a call id, and whether the id is canonical; the name is "" where there is none."""
    canonical = CallId.parse(id_text)
    if canonical is not None:
        return canonical.name, True
    match = _LOOSE.fullmatch(id_text) or _OTHER_SEPARATORS.fullmatch(id_text)
    return (match["name"] if match else ""), False


class StreamParser:
    """Feed ids as they are sampled, send on the deltas; `close` ends the turn, `finish` gives the message.

    The deltas of every `feed` and of `close`, concatenated, are the message, whatever the split.
    """

    def __init__(self, codec: Codec) -> None:
        self._tokenizer = codec.tokenizer
        self._stop_ids = codec.stop_ids
        self._names = {row: name for name, row in self._tokenizer.special.items()}
        self._state = State.CONTENT
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._content: list[str] = []
        self._header = ""
        self._calls: list[dict[str, str]] = []  # id and name of each call begun
        self._arguments: list[list[str]] = []
        self._faults: dict[str, None] = {}  # an ordered set of what broke the grammar

    def feed(self, ids: Sequence[int]) -> list[Delta]:
        """Deltas that these further ids complete: `{"content": ...}` or `{"tool_calls": [...]}`."""
        deltas: list[Delta] = []
        for row in ids:
            if self._state is State.DONE:
                break
            if self._tokenizer.is_control(row):
                deltas += self._text(self._utf8.decode(b"", final=True))
                deltas += self._control(row)
            else:
                deltas += self._text(self._utf8.decode(self._tokenizer.token_bytes(row)))
        return deltas

    def close(self) -> list[Delta]:
        """End the turn where it stands: the last deltas (U+FFFD for a character cut off), faults noted."""
        if self._state is State.DONE:
            return []
        deltas = self._text(self._utf8.decode(b"", final=True))
        if self._state in (State.SECTION, State.HEADER, State.ARGUMENTS):
            self._fault("the turn ends inside the tool-call section")
        deltas += self._leave_header()
        self._state = State.DONE
        return deltas

    def finish(self) -> Message:
        """Close the turn; the message: an unfinished call is in it, and told under `malformed`."""
        self.close()
        message: Message = {"role": "assistant", "content": "".join(self._content)}
        if self._calls:
            message["tool_calls"] = [
                {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": "".join(parts)}}
                for call, parts in zip(self._calls, self._arguments, strict=True)
            ]
        if self._faults:
            message["malformed"] = "; ".join(self._faults)
        return message

    def _text(self, text: str) -> list[Delta]:
        if not text:
            return []
        if self._state is State.HEADER:
            self._header += text
            return []
        if self._state is State.ARGUMENTS:
            self._arguments[-1].append(text)
            return [{"tool_calls": [{"index": len(self._calls) - 1, "function": {"arguments": text}}]}]
        if self._state is State.SECTION:
            if text.strip():
                self._fault("text between tool calls")
            return []
        if self._state is State.AFTER:
            self._fault("text after the tool-call section")
        self._content.append(text)
        return [{"content": text}]

    def _control(self, row: int) -> list[Delta]:
        if row in self._stop_ids:
            return self.close()
        name = self._names.get(row, f"unused token {row}")
        if name == vocab.SECTION_BEGIN:
            return self._begin_section()
        if name == vocab.CALL_BEGIN:
            return self._begin_call()
        if name == vocab.ARGUMENT_BEGIN and self._state is State.HEADER:
            return self._begin_arguments()
        if name == vocab.CALL_END and self._state in (State.HEADER, State.ARGUMENTS):
            return self._end_call()
        if name == vocab.SECTION_END and self._state not in (State.CONTENT, State.AFTER):
            return self._end_section()
        self._fault(f"{name} out of place")
        return []

    def _begin_section(self) -> list[Delta]:
        if self._state is not State.CONTENT:
            self._fault("a second tool-call section")
        deltas = self._leave_header()
        self._state = State.SECTION
        return deltas

    def _begin_call(self) -> list[Delta]:
        if self._state in (State.CONTENT, State.AFTER):
            self._fault("a tool call outside the tool-call section")
        if self._state in (State.HEADER, State.ARGUMENTS):
            self._fault("a tool call without its end")
        deltas = self._leave_header()
        self._state, self._header = State.HEADER, ""
        return deltas

    def _begin_arguments(self) -> list[Delta]:
        id_text = self._header.strip()
        name, canonical = call_name(id_text)
        if not canonical:
            self._fault(f"call id {id_text!r:.80} is not functions.NAME:INDEX")
        self._state = State.ARGUMENTS
        self._calls.append({"id": id_text, "name": name})
        self._arguments.append([])
        function = {"name": name, "arguments": ""}
        call = {"index": len(self._calls) - 1, "id": id_text, "type": "function", "function": function}
        return [{"tool_calls": [call]}]

    def _leave_header(self) -> list[Delta]:
        """A call whose arguments never began: told, and passed on with none."""
        if self._state is not State.HEADER:
            return []
        self._fault("a tool call without arguments")
        return self._begin_arguments()

    def _end_call(self) -> list[Delta]:
        deltas = self._leave_header()
        self._state = State.SECTION
        return deltas

    def _end_section(self) -> list[Delta]:
        if self._state in (State.HEADER, State.ARGUMENTS):
            self._fault("a tool call without its end")
        elif not self._calls:
            self._fault("a tool-call section without a call")
        deltas = self._leave_header()
        self._state = State.AFTER
        return deltas

    def _fault(self, reason: str) -> None:
        self._faults.setdefault(reason)
