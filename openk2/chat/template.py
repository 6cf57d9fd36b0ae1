"""K2's chat layout: messages and tools -> segments of control tokens and plain text.

Invariants: a control segment is exactly one control token; everything that
came from outside (names, ids, contents, declarations, arguments) is in text
segments, and two text segments never touch, so that encoding segment by
segment gives the ids of the rendered string. `JINJA` says the same in the
language of `chat_template.jinja`; a test holds the two together.
Versions: "first-release" (11 July 2025: no tool calls rendered) and "revised"
(tool calls and results, role names; with the fixes of October 2025: list
contents, and the end of turn always closed). Left out: images, the sorting of
declaration keys in a later tokenizer, and the TypeScript form of declarations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openk2.chat import vocabulary as vocab
from openk2.protocols import Message, ToolSpec

TEMPLATE_FILE = "chat_template.jinja"

DEFAULT_SYSTEM: Mapping[str, str] = {
    "first-release": "You are a helpful assistant",
    "revised": "You are Kimi, an AI assistant created by Moonshot AI.",
}
VERSIONS = tuple(sorted(DEFAULT_SYSTEM))
ROLES = ("assistant", "system", "tool", "user")

_ROLE_TOKEN = {"user": vocab.IM_USER, "assistant": vocab.IM_ASSISTANT}
# Models write these ids: an index without end must not reach int(), which refuses thousands of digits.
_CANONICAL_ID = re.compile(r"functions\.(?P<name>.+):(?P<index>0|[1-9][0-9]{0,17})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Segment:
    """A control token (`text` is its name) or a run of plain text; `train` if the model is to produce it."""

    text: str
    control: bool = False
    train: bool = False


@dataclass(frozen=True, slots=True)
class CallId:
    """The parts of K2's call id, `functions.{name}:{index}`; the index counts the calls of the dialogue from 0."""

    name: str
    index: int

    def __str__(self) -> str:
        return f"functions.{self.name}:{self.index}"

    @classmethod
    def parse(cls, text: str) -> CallId | None:
        """None unless `text` is in canonical form; names may hold dots and hyphens."""
        match = _CANONICAL_ID.fullmatch(text)
        return cls(match["name"], int(match["index"])) if match else None


def dump_json(value: Any) -> str:
    """JSON as the template's `tojson` writes it: `", "` and `": "`, keys in order, no ASCII escapes."""
    return json.dumps(value, ensure_ascii=False)


def content_text(message: Message) -> str:
    """The text of a message: a string, none, or a list of text parts."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(_part_text(part) for part in content)


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise ValueError(f"content part: saw type {kind!r}, expected a text part; Kimi K2 reads text only, drop the part")


def canonical_calls(messages: Sequence[Message], *, first_index: int = 0, keep: bool = False) -> list[Message]:
    """Copies of `messages` whose call ids are `functions.{name}:{idx}`, and tool results that follow them.

    Calls are numbered from `first_index` in order. With `keep`, an id already
    canonical stays and numbering goes on after it (turns of a dialogue whose
    tokens exist). A result names its call by the latest use of the old id;
    where calls of one message share an id, or have none, results take them in
    order. A result of a call not among `messages` keeps its id. A result
    without a name gets the tool's. Foreign ids in a history make the model copy them, which
    is the first cause of broken tool loops.
    """
    naming = _Naming(first_index, keep)
    return [naming.message(f"messages[{at}]", message) for at, message in enumerate(messages)]


class _Naming:
    """The running state of `canonical_calls`: the next index, and which calls each old id stands for now."""

    def __init__(self, first_index: int, keep: bool) -> None:
        self._index = first_index
        self._keep = keep
        self._renamed: dict[str, list[CallId]] = {}  # of the last message that used the id; the next result's first

    def message(self, path: str, message: Message) -> Message:
        if message.get("tool_calls"):
            renamed: dict[str, list[CallId]] = {}
            calls = [
                self._call(f"{path}.tool_calls[{at}]", call, renamed) for at, call in enumerate(message["tool_calls"])
            ]
            self._renamed |= renamed
            return {**message, "tool_calls": calls}
        if message.get("role") == "tool":
            return self._result(message)
        return message

    def _call(self, path: str, call: Any, renamed: dict[str, list[CallId]]) -> dict[str, Any]:
        try:
            name, old = call["function"]["name"], str(call.get("id") or "")
        except (KeyError, TypeError, AttributeError):
            raise ValueError(
                f'{path}: saw {call!r:.80}, expected {{"id": ..., "function": {{"name": ..., "arguments": ...}}}}; '
                "write the call so"
            ) from None
        new, given = CallId(name, self._index), CallId.parse(old)
        if self._keep and given is not None and given.name == name:
            new = given
        self._index = new.index + 1
        renamed.setdefault(old, []).append(new)
        return {**call, "id": str(new)}

    def _result(self, message: Message) -> Message:
        old = str(message.get("tool_call_id") or "")
        waiting = self._renamed.get(old, [])
        call = waiting[0] if waiting else CallId.parse(old)
        if len(waiting) > 1:
            waiting.pop(0)
        name = message.get("name") or (call.name if call else None)
        return {**message, "tool_call_id": str(call) if call else old, "name": name}


def prelude(version: str, messages: Sequence[Message], tools: Sequence[ToolSpec] | None) -> Iterator[Segment]:
    """The tool declaration, and the default system turn where the dialogue brings none."""
    if tools:
        heading = "\n  # Tools\n  " if version == "revised" else ""
        yield from _turn(vocab.IM_SYSTEM, "tool_declare", [Segment(heading + dump_json(list(tools)))])
    if messages and messages[0].get("role") != "system":
        yield from _turn(vocab.IM_SYSTEM, "system", [Segment(DEFAULT_SYSTEM[version])])


def turns(version: str, messages: Sequence[Message]) -> Iterator[Segment]:
    """One turn a message; `messages` have canonical call ids."""
    for at, message in enumerate(messages):
        role = message.get("role")
        if role not in ROLES:
            raise ValueError(f"messages[{at}].role: saw {role!r}, expected one of {', '.join(ROLES)}; rename it")
        name = message.get("name") if version == "revised" else None
        train = role == "assistant" and message.get("train", True) and message.get("weight", 1) != 0
        yield from _turn(_ROLE_TOKEN.get(role, vocab.IM_SYSTEM), name or role, _body(version, message), train=train)


def generation_prompt() -> Iterator[Segment]:
    """The header after which the model writes its turn."""
    yield Segment(vocab.IM_ASSISTANT, control=True)
    yield Segment("assistant")
    yield Segment(vocab.IM_MIDDLE, control=True)


def _turn(role_token: str, name: str, body: Sequence[Segment], *, train: bool = False) -> Iterator[Segment]:
    yield Segment(role_token, control=True)
    yield Segment(name)
    yield Segment(vocab.IM_MIDDLE, control=True)
    for segment in (*body, Segment(vocab.IM_END, control=True)):
        if segment.text:
            yield Segment(segment.text, segment.control, train)


def _body(version: str, message: Message) -> list[Segment]:
    text = content_text(message)
    if version == "revised" and message["role"] == "tool":
        # Line feed and four spaces: an indentation that K2's own template lets through.
        return [Segment(f"## Return of {message['tool_call_id']}\n    {text}")]
    if version == "revised" and message["role"] == "assistant" and message.get("tool_calls"):
        return [Segment(text), *_call_section(message["tool_calls"])]
    return [Segment(text)]


def _call_section(calls: Sequence[Mapping[str, Any]]) -> Iterator[Segment]:
    yield Segment(vocab.SECTION_BEGIN, control=True)
    for call in calls:
        arguments = call["function"].get("arguments", "")
        yield Segment(vocab.CALL_BEGIN, control=True)
        yield Segment(call["id"])
        yield Segment(vocab.ARGUMENT_BEGIN, control=True)
        yield Segment(arguments if isinstance(arguments, str) else dump_json(arguments))
        yield Segment(vocab.CALL_END, control=True)
    yield Segment(vocab.SECTION_END, control=True)


# Whitespace control: every line break below is stripped, breaks that count are written as strings.
_JINJA_TEXT = """\
{%- macro text(content) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- elif content -%}
    {%- for part in content -%}{{- part if part is string else part['text'] -}}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
"""

_JINJA_FIRST_RELEASE = """\
{%- if tools -%}
  {{- '<|im_system|>tool_declare<|im_middle|>' ~ (tools | tojson) ~ '<|im_end|>' -}}
{%- endif -%}
{%- if messages and messages[0]['role'] != 'system' -%}
  {{- '<|im_system|>system<|im_middle|>DEFAULT_SYSTEM<|im_end|>' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- set token = {'user': '<|im_user|>', 'assistant': '<|im_assistant|>'}.get(message['role'], '<|im_system|>') -%}
  {{- token ~ message['role'] ~ '<|im_middle|>' ~ text(message['content']) ~ '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_assistant|>assistant<|im_middle|>' -}}
{%- endif -%}
"""

_JINJA_REVISED = """\
{%- set seen = namespace(calls=0, ids={}) -%}
{%- if tools -%}
  {{- '<|im_system|>tool_declare<|im_middle|>\\n  # Tools\\n  ' ~ (tools | tojson) ~ '<|im_end|>' -}}
{%- endif -%}
{%- if messages and messages[0]['role'] != 'system' -%}
  {{- '<|im_system|>system<|im_middle|>DEFAULT_SYSTEM<|im_end|>' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- set token = {'user': '<|im_user|>', 'assistant': '<|im_assistant|>'}.get(message['role'], '<|im_system|>') -%}
  {%- if message['role'] == 'tool' -%}
    {%- set old = (message.get('tool_call_id') or '') | string -%}
    {%- set waiting = seen.ids.get(old, []) -%}
    {%- set id = waiting[0] if waiting else old -%}
    {%- if waiting | length > 1 -%}
      {%- set seen.ids = dict(seen.ids, **{old: waiting[1:]}) -%}
    {%- endif -%}
    {%- set called = id[10:].rpartition(':')[0] if id.startswith('functions.') else '' -%}
    {{- token ~ (message.get('name') or called or 'tool') ~ '<|im_middle|>' -}}
    {{- '## Return of ' ~ id ~ '\\n    ' ~ text(message['content']) -}}
  {%- else -%}
    {{- token ~ (message.get('name') or message['role']) ~ '<|im_middle|>' ~ text(message['content']) -}}
  {%- endif -%}
  {%- if message['role'] == 'assistant' and message.get('tool_calls') -%}
    {{- '<|tool_calls_section_begin|>' -}}
    {%- set begun = namespace(ids={}) -%}
    {%- for call in message['tool_calls'] -%}
      {%- set id = 'functions.' ~ call['function']['name'] ~ ':' ~ seen.calls -%}
      {%- set old = (call.get('id') or '') | string -%}
      {%- set begun.ids = dict(begun.ids, **{old: begun.ids.get(old, []) + [id]}) -%}
      {%- set seen.calls = seen.calls + 1 -%}
      {%- set arguments = call['function'].get('arguments', '') -%}
      {{- '<|tool_call_begin|>' ~ id ~ '<|tool_call_argument_begin|>' -}}
      {{- (arguments if arguments is string else arguments | tojson) ~ '<|tool_call_end|>' -}}
    {%- endfor -%}
    {%- set seen.ids = dict(seen.ids, **begun.ids) -%}
    {{- '<|tool_calls_section_end|>' -}}
  {%- endif -%}
  {{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_assistant|>assistant<|im_middle|>' -}}
{%- endif -%}
"""

# Version -> the content of `chat_template.jinja`, for engines that render text.
JINJA: Mapping[str, str] = {
    version: _JINJA_TEXT + body.replace("DEFAULT_SYSTEM", DEFAULT_SYSTEM[version])
    for version, body in (("first-release", _JINJA_FIRST_RELEASE), ("revised", _JINJA_REVISED))
}
