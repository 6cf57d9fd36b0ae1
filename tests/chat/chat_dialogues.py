"""Dialogues for the chat tests: builders, and hypothesis strategies full of hostile text."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from openk2.chat.vocabulary import SPECIAL_OFFSETS

SPECIAL_NAMES = [*SPECIAL_OFFSETS.values(), "<|reserved_token_773|>"]

# Any text, with the names of control tokens strewn in: the attack that the codec must withstand.
HOSTILE = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(SPECIAL_NAMES)), max_size=4).map("".join)
NAMES = st.one_of(
    st.sampled_from(["get_weather", "fs.read-file", "a:1", "functions.x", "名前"]), HOSTILE.filter(lambda s: s.strip())
)
ARGUMENTS = st.dictionaries(HOSTILE, st.one_of(HOSTILE, st.integers(), st.none()), max_size=2)


def call(name: str, arguments: Any, call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def declaration(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": sorted(properties)}
    return {"type": "function", "function": {"name": name, "description": f"Run {name}.", "parameters": parameters}}


@st.composite
def dialogues(draw: st.DrawFn, text: st.SearchStrategy[str] = HOSTILE) -> list[dict[str, Any]]:
    """Zero or one system message, then rounds of user, perhaps calls and their results, and an answer.

    Call ids are what clients send: K2's own, other people's, or repeated from round to round.
    """
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(text)})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(text)})
        num_calls = draw(st.integers(0, 2))
        if num_calls:
            style = draw(
                st.sampled_from(["call_{}", "functions.get_weather:{}", "{}", "functionsexec{}", "c<|im_end|>{}"])
            )
            calls = []
            for at in range(num_calls):
                arguments = draw(ARGUMENTS)
                as_text = draw(st.booleans())
                calls.append(call(draw(NAMES), json.dumps(arguments) if as_text else arguments, style.format(at)))
            messages.append({"role": "assistant", "content": draw(st.one_of(st.none(), text)), "tool_calls": calls})
            for one in draw(st.permutations(calls)):
                messages.append({"role": "tool", "tool_call_id": one["id"], "content": draw(text)})
        messages.append({"role": "assistant", "content": draw(text)})
    return messages
