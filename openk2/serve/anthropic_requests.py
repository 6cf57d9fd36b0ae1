"""Anthropic's messages request: its schema, and what it asks of codec and engine.

Kimi K2's rule for this API: the model samples at 0.6 times the temperature
that is asked for. Call ids are shown in the alphabet that Anthropic's clients
allow and read back. Not supported, and refused by name: images, documents,
thinking, built-in tools, answers begun by the client.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from openk2.protocols import Message, SamplingParams, ToolSpec
from openk2.serve.dialogue import Dialogue
from openk2.serve.errors import ApiError
from openk2.serve.schema import (
    MAX_TOOLS,
    Content,
    Count,
    Ignored,
    Many,
    Probability,
    StopString,
    TextPart,
    ToolName,
    TopK,
    TopP,
    Wire,
    content_text,
)

TEMPERATURE_SCALE = 0.6  # Kimi K2's README: real_temperature = request_temperature * 0.6
_ID_PREFIX = "toolu_"


def shown_id(call_id: str) -> str:
    """`functions.name:0` in letters, digits, `_` and `-`."""
    return _ID_PREFIX + base64.urlsafe_b64encode(call_id.encode("utf-8", "replace")).decode().rstrip("=")


def read_id(text: str) -> str:
    """What `shown_id` was given; an id of anybody else's as it is."""
    if not text.startswith(_ID_PREFIX):
        return text
    encoded = text.removeprefix(_ID_PREFIX)
    try:
        return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except (binascii.Error, ValueError):
        return text


class ToolUse(Wire):
    type: Literal["tool_use"]
    id: str
    name: ToolName
    input: dict[str, Any]
    cache_control: Ignored = None
    caller: Ignored = None


class Thinking(Wire):
    """What another model thought; K2 does not think aloud, and it is dropped."""

    type: Literal["thinking", "redacted_thinking"]
    thinking: Ignored = None
    signature: Ignored = None
    data: Ignored = None


class ToolResult(Wire):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Content = ""
    is_error: Ignored = None  # K2's layout has no place for it: the text says what went wrong
    cache_control: Ignored = None


UserBlock = Annotated[TextPart | ToolResult, Field(discriminator="type")]
AssistantBlock = Annotated[TextPart | ToolUse | Thinking, Field(discriminator="type")]


class UserMessage(Wire):
    role: Literal["user"]
    content: str | Many[UserBlock]

    def messages(self) -> Iterator[Message]:
        """Results and texts as turns of their own, in the order in which they stand."""
        blocks = [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content
        text = ""
        for block in blocks:
            if isinstance(block, TextPart):
                text += block.text
                continue
            if text:
                yield {"role": "user", "content": text}
                text = ""
            result = content_text(block.content)
            yield {"role": "tool", "tool_call_id": read_id(block.tool_use_id), "content": result}
        if text or not any(isinstance(block, ToolResult) for block in blocks):
            yield {"role": "user", "content": text}


class AssistantMessage(Wire):
    role: Literal["assistant"]
    content: str | Many[AssistantBlock]

    def messages(self) -> Iterator[Message]:
        blocks = [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content
        message: Message = {
            "role": "assistant",
            "content": "".join(block.text for block in blocks if isinstance(block, TextPart)),
        }
        calls = [
            {
                "id": read_id(block.id),
                "type": "function",
                "function": {"name": block.name, "arguments": block.input},
            }
            for block in blocks
            if isinstance(block, ToolUse)
        ]
        yield message | ({"tool_calls": calls} if calls else {})


class Tool(Wire):
    name: ToolName
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] = "custom"
    strict: Ignored = None  # always
    cache_control: Ignored = None
    eager_input_streaming: Ignored = None

    def spec(self) -> ToolSpec:
        described = {"description": self.description} if self.description is not None else {}
        return {"type": "function", "function": {"name": self.name, **described, "parameters": self.input_schema}}


class ToolChoice(Wire):
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool = False


class NamedTool(Wire):
    type: Literal["tool"]
    name: ToolName
    disable_parallel_tool_use: bool = False


class NoThinking(Wire):
    type: Literal["disabled"]


class CountRequest(Wire):
    """`/v1/messages/count_tokens`."""

    model: str | None = None
    messages: Annotated[
        Many[Annotated[UserMessage | AssistantMessage, Field(discriminator="role")]], Field(min_length=1)
    ]
    system: Content | None = None
    tools: Many[Tool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: Annotated[ToolChoice | NamedTool, Field(discriminator="type")] = ToolChoice(type="auto")
    thinking: NoThinking | None = None
    cache_control: Ignored = None

    def dialogue(self) -> Dialogue:
        if isinstance(self.messages[-1], AssistantMessage):
            raise ApiError(
                400,
                "messages: saw an assistant's message at the end, expected a user's; begun answers are not supported",
            )
        system = content_text(self.system)
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        for message in self.messages:
            messages += message.messages()
        choice = self.tool_choice
        return Dialogue(
            messages,
            [tool.spec() for tool in self.tools],
            choice=choice.name if isinstance(choice, NamedTool) else {"any": "required"}.get(choice.type, choice.type),
            parallel=not choice.disable_parallel_tool_use,
        )


class MessagesRequest(CountRequest):
    max_tokens: Count
    stop_sequences: list[StopString] = Field(default_factory=list, max_length=16)
    temperature: Probability | None = None
    top_p: TopP = 1.0
    top_k: TopK = 0
    stream: bool = False
    metadata: Ignored = None
    service_tier: Ignored = None

    @property
    def n(self) -> int:
        return 1

    @property
    def most(self) -> int:
        return self.max_tokens

    @property
    def constrained(self) -> bool:
        return bool(self.tools)

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(self.stop_sequences)

    def params(self, stop_ids: tuple[int, ...], *, most: int, temperature: float) -> SamplingParams:
        return SamplingParams(
            max_new_tokens=most,
            temperature=temperature if self.temperature is None else self.temperature * TEMPERATURE_SCALE,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=secrets.randbits(63),
            stop_ids=stop_ids,
        )
