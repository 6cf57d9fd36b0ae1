"""A dialogue that is to be continued, whichever API it came by: ids of the prompt, grammar of the answer.

Everything that a client says reaches the model through the codec, as text;
arguments and JSON answers obey their schemas by construction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openk2.chat.codec import Codec
from openk2.chat.grammar import Lexicon, TurnGrammar
from openk2.protocols import Message, ToolSpec
from openk2.serve.errors import ApiError, shown

_CHOICES = ("auto", "none", "required")  # what else may stand where a tool is named


@dataclass(frozen=True)
class Dialogue:
    """Messages and tools as the codec takes them; `choice`, `parallel` and `response` as `TurnGrammar` does."""

    messages: Sequence[Message]
    tools: Sequence[ToolSpec] = ()
    choice: str = "auto"
    parallel: bool = True
    response: Mapping[str, Any] | None = None

    def ids(self, codec: Codec) -> tuple[int, ...]:
        """The prompt, up to where the assistant's turn begins."""
        self._check(codec)
        try:
            return codec.encode(self.messages, self.tools or None, add_generation_prompt=True).ids
        except (ValueError, RecursionError) as error:
            raise _refusal(error, "messages") from None

    def grammar(self, lexicon: Lexicon) -> TurnGrammar:
        num_calls = sum(len(message.get("tool_calls", ())) for message in self.messages)
        try:
            return TurnGrammar(
                lexicon,
                self.tools,
                choice=self.choice,
                parallel=self.parallel,
                first_call_index=num_calls,
                response=self.response,
            )
        except (ValueError, RecursionError) as error:
            raise _refusal(error, "tools") from None

    def _check(self, codec: Codec) -> None:
        """What no single message can tell."""
        names = Counter(tool["function"]["name"] for tool in self.tools)
        wrong = next((name for name, count in names.items() if count > 1 or name in _CHOICES), None)
        if wrong is not None:
            expected = f"each name once, and none of {', '.join(_CHOICES)}"
            raise ApiError(400, f"tools: saw {shown(wrong)}, expected {expected}; rename it", param="tools")
        called: set[str] = set()
        for at, message in enumerate(self.messages):
            if message["role"] == "system" and at:
                where = f"messages[{at}].role"
                raise ApiError(400, f"{where}: saw a system message, expected one only at the start", param=where)
            called.update(call["id"] for call in message.get("tool_calls", ()))
            if message["role"] == "tool" and message["tool_call_id"] not in called:
                where, seen = f"messages[{at}].tool_call_id", shown(message["tool_call_id"])
                raise ApiError(400, f"{where}: saw {seen}, expected the id of an earlier call", param=where)
        if called and codec.template == "first-release":
            raise ApiError(400, "messages: saw calls, which this model's template (first-release) cannot express")


def _refusal(error: Exception, where: str) -> ApiError:
    if isinstance(error, RecursionError):
        return ApiError(400, f"{where}: saw JSON nested too deeply, expected less depth; flatten it", param=where)
    return ApiError(400, str(error), param=str(error).partition(":")[0])
