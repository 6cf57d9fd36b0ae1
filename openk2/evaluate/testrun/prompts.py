"""Prompts from files that people write: what is asked, and how an answer to it is checked.

Invariants: every key is known or refused; a prompt's hash covers all of what a
model is asked and nothing else, so that a corrected check, title or example
leaves its answers in place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openk2.evaluate.testrun import fields
from openk2.evaluate.testrun.checks import parse_checks
from openk2.evaluate.testrun.haystack import PLACE, Haystack
from openk2.evaluate.testrun.messages import parse_messages, parse_tool_choice, parse_tools
from openk2.evaluate.testrun.replies import Reply, ToolCall
from openk2.evaluate.testrun.verdicts import Check, Verdict, judge
from openk2.protocols import ToolSpec

STARTER = "starter"  # the prompts that ship in the folder of this name beside this file
_KEYS = (
    "title", "category", "prompt", "messages", "system", "tools", "tool_choice", "max_tokens", "temperature", "check",
    "haystack", "examples",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prompt:
    """`request` is its part of a request's body; `source` what its file holds, from which it can be made again."""

    id: str
    title: str
    category: str
    request: Mapping[str, Any]
    checks: tuple[Check, ...]
    good: tuple[Reply, ...]  # answers that the check must accept
    bad: tuple[Reply, ...]  # and refuse
    source: Mapping[str, Any]

    @property
    def hash(self) -> str:
        return digest(self.request)

    @property
    def tools(self) -> dict[str, ToolSpec]:
        return {spec["function"]["name"]: spec for spec in self.request.get("tools", ())}

    def judge(self, reply: Reply) -> Verdict:
        return judge(reply, self.checks, self.tools)

    @classmethod
    def parse(cls, source: Mapping[str, Any], name: str, where: str) -> Prompt:
        """ValueError, naming the key, for whatever is not as it should be."""
        fields.an_object(source, where, _KEYS, ("category",))
        request = _request(source, where)
        examples = fields.an_object(source.get("examples", {}), f"{where}: examples", ("good", "bad"))
        return cls(
            id=name,
            title=fields.a_text(source.get("title", name), f"{where}: title"),
            category=fields.a_text(source["category"], f"{where}: category"),
            request=request,
            checks=parse_checks(source["check"], f"{where}: check") if "check" in source else (),
            good=_replies(examples.get("good", []), f"{where}: examples.good"),
            bad=_replies(examples.get("bad", []), f"{where}: examples.bad"),
            source=source,
        )


def digest(value: Any) -> str:
    """A hash of a JSON value: keys sorted, no spaces."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def load_prompts(path: Path | str) -> list[Prompt]:
    """The prompts of a folder (*.json, one each, and *.jsonl), of one such file, or the `starter` set, by id.

    A file's prompt has its name for an id, a line's says it under "id".
    """
    folder = Path(__file__).with_name(STARTER) if str(path) == STARTER else Path(path)
    found: dict[str, tuple[Prompt, str]] = {}
    for name, source, where in _sources(folder):
        if name in found:
            raise ValueError(f"{where}: saw the id {name!r}, which {found[name][1]} has; rename one of them")
        found[name] = (Prompt.parse(source, name, where), where)
    if not found:
        raise ValueError(f"{folder}: saw no prompts, expected *.json or *.jsonl files; `{STARTER}` names the built-in")
    return [found[name][0] for name in sorted(found)]


def as_lines(prompts: Sequence[Prompt]) -> str:
    """The prompts as a .jsonl file that `load_prompts` reads."""
    return "".join(json.dumps({"id": prompt.id, **prompt.source}, ensure_ascii=False) + "\n" for prompt in prompts)


def failed_proofs(prompts: Sequence[Prompt]) -> list[str]:
    """A line for each example that its own check judges otherwise than its file says."""
    lines = []
    for prompt in prompts:
        for wanted, replies in ((True, prompt.good), (False, prompt.bad)):
            for at, reply in enumerate(replies):
                found = prompt.judge(reply)
                if found.passed is not wanted:
                    kind = "good" if wanted else "bad"
                    lines.append(f"{prompt.id}: {kind} example {at + 1}: saw {found.name} ({found.reason})")
    return lines


def _sources(path: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(id, content, where) of each prompt."""
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.suffix in (".json", ".jsonl") and file.is_file():
                yield from _sources(file)
    elif path.is_file() and path.suffix == ".json":
        yield path.stem, fields.read_json(fields.read_text(path), str(path)), str(path)
    elif path.is_file() and path.suffix == ".jsonl":
        for number, line in enumerate(fields.read_text(path).split("\n"), start=1):
            if line.strip():
                where = f"{path}:{number}"
                source = fields.read_json(line, where)
                yield fields.a_text(source.pop("id", None), f"{where}: id"), source, where
    else:
        raise ValueError(f"{path}: saw no such prompts, expected a folder, a .json or .jsonl file, or `{STARTER}`")


def _request(source: Mapping[str, Any], where: str) -> dict[str, Any]:
    request: dict[str, Any] = {"messages": _messages(source, where)}
    if "tools" in source:
        request["tools"] = parse_tools(source["tools"], f"{where}: tools")
    if "tool_choice" in source:
        request["tool_choice"] = parse_tool_choice(source, f"{where}: tool_choice")
    if "max_tokens" in source:
        request["max_tokens"] = fields.an_integer(source["max_tokens"], f"{where}: max_tokens", least=1)
    if "temperature" in source:
        request["temperature"] = fields.a_number(source["temperature"], f"{where}: temperature", least=0, most=2)
    return request


def _messages(source: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    if ("prompt" in source) == ("messages" in source):
        raise ValueError(f"{where}: saw {'both' if 'prompt' in source else 'neither'} of 'prompt' and 'messages', "
                         "expected one of them")  # fmt: skip
    if "prompt" in source:
        messages = [{"role": "user", "content": fields.a_text(source["prompt"], f"{where}: prompt")}]
    else:
        messages = parse_messages(source["messages"], f"{where}: messages")
    if "system" in source:
        if messages[0]["role"] == "system":
            raise ValueError(f"{where}: system: saw a system message in 'messages' too, expected one; drop the other")
        messages.insert(0, {"role": "system", "content": fields.a_text(source["system"], f"{where}: system")})
    return _filled(messages, source, where)


def _filled(messages: list[dict[str, Any]], source: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The messages with the haystack in its place, where one is declared."""
    if "haystack" not in source:
        return messages
    haystack = Haystack.parse(source["haystack"], f"{where}: haystack")
    places = sum(str(message["content"]).count(PLACE) for message in messages)
    if places != 1:
        raise ValueError(f"{where}: haystack: saw {PLACE} {places} times in the messages, expected it once")
    text = haystack.text()
    return [
        {**message, "content": message["content"].replace(PLACE, text)}
        if isinstance(message["content"], str) else message
        for message in messages
    ]  # fmt: skip


def _replies(value: Any, where: str) -> tuple[Reply, ...]:
    """A text, an object with `content`, `tool_calls` or `finish_reason`, or a list of either."""
    return tuple(_reply(entry, where) for entry in (value if isinstance(value, list) else [value]))


def _reply(value: Any, where: str) -> Reply:
    if isinstance(value, str):
        return Reply(content=value, finish_reason="stop")
    fields.an_object(value, where, ("content", "tool_calls", "finish_reason"))
    calls = []
    for call in value.get("tool_calls", ()):
        fields.an_object(call, f"{where}.tool_calls", ("name", "arguments"), ("name", "arguments"))
        given = call["arguments"]
        calls.append(ToolCall(call["name"], given if isinstance(given, str) else json.dumps(given)))
    reason = value.get("finish_reason", "tool_calls" if calls else "stop")
    return Reply(content=value.get("content", ""), tool_calls=tuple(calls), finish_reason=reason)
