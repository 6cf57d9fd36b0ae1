"""OpenAI's chat and text completion requests: their schemas, and what they ask of codec and engine.

`top_k`, `min_p`, `repetition_penalty`, `return_token_ids`, `return_experts` and
`first_stream` are extensions, and so is `/v1/weights`. Not supported, and refused by name: logit_bias, audio, images,
echo, suffix, best_of, custom and built-in tools.
"""

from __future__ import annotations

import secrets
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
    ToolName,
    TopK,
    TopP,
    Wire,
    content_text,
)

MAX_CONTINUATIONS = 128
COMPLETION_TOKENS = 16  # OpenAI's default for text completions

Penalty = Annotated[float, Field(ge=-2, le=2)]


class SystemMessage(Wire):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Wire):
    role: Literal["user"]
    content: Content
    name: str | None = None


class ToolMessage(Wire):
    role: Literal["tool"]
    content: Content
    tool_call_id: str = ""  # some clients know none
    name: str | None = None


class CalledFunction(Wire):
    name: ToolName
    arguments: str


class ToolCall(Wire):
    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Ignored = None


class AssistantMessage(Wire):
    """K2 does not think aloud: what another model thought is accepted and dropped."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Many[ToolCall] | None = None
    reasoning_content: Ignored = None
    reasoning: Ignored = None
    annotations: Ignored = None


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Wire):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Ignored = None  # always


class Tool(Wire):
    type: Literal["function"]
    function: Function

    def spec(self) -> ToolSpec:
        kept = self.function.model_dump(include={"name", "description", "parameters"}, exclude_none=True)
        return {"type": "function", "function": kept}


class FunctionName(Wire):
    name: ToolName


class NamedTool(Wire):
    type: Literal["function"]
    function: FunctionName


class TextFormat(Wire):
    type: Literal["text"]


class JsonObject(Wire):
    type: Literal["json_object"]


class NamedSchema(Wire):
    schema_: dict[str, Any] = Field(alias="schema")
    name: Ignored = None
    description: Ignored = None
    strict: Ignored = None


class JsonSchema(Wire):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObject | JsonSchema, Field(discriminator="type")]


class StreamOptions(Wire):
    include_usage: bool = False
    include_obfuscation: Ignored = None


class Sampling(Wire):
    """What both kinds of request share."""

    model: str | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: TopP = 1.0
    top_k: TopK = 0
    min_p: Probability = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CONTINUATIONS)] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    prediction: Ignored = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def constrained(self) -> bool:
        """Whether the grammar of what it asks for is made of schemas."""
        return False

    @property
    def top_log_probs(self) -> int:
        """Alternatives to tell of each token."""
        return 0

    def params(self, stop_ids: tuple[int, ...], *, most: int, temperature: float) -> SamplingParams:
        """`most` tokens; `temperature` where the request says none."""
        return SamplingParams(
            max_new_tokens=most,
            temperature=temperature if self.temperature is None else self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            seed=secrets.randbits(63) if self.seed is None else self.seed % 2**63,
            stop_ids=stop_ids,
            top_log_probs=self.top_log_probs,
        )


class ChatRequest(Sampling):
    messages: Annotated[Many[ChatMessage], Field(min_length=1)]
    tools: Many[Tool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: Literal["auto", "none", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = TextFormat(type="text")
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    modalities: Many[Literal["text"]] | None = None

    @property
    def most(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def top_log_probs(self) -> int:
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs: saw it without logprobs, expected logprobs true", param="top_logprobs")
        return self.top_logprobs

    @property
    def constrained(self) -> bool:
        return bool(self.tools) or not isinstance(self.response_format, TextFormat)

    def dialogue(self) -> Dialogue:
        choice = self.tool_choice if isinstance(self.tool_choice, str) else self.tool_choice.function.name
        response: dict[str, Any] | None = None
        if isinstance(self.response_format, JsonSchema):
            response = self.response_format.json_schema.schema_
        elif isinstance(self.response_format, JsonObject):
            response = {"type": "object"}
        return Dialogue(
            messages=[_message(message) for message in self.messages],
            tools=[tool.spec() for tool in self.tools],
            choice=choice,
            parallel=self.parallel_tool_calls,
            response=response,
        )


def _message(message: ChatMessage) -> Message:
    """As the codec takes it."""
    role = "system" if isinstance(message, SystemMessage) else message.role
    found: Message = {"role": role, "content": content_text(message.content)}
    if message.name:
        found["name"] = message.name
    if isinstance(message, ToolMessage):
        found["tool_call_id"] = message.tool_call_id
    elif isinstance(message, AssistantMessage) and message.tool_calls:
        found["tool_calls"] = [call.model_dump(exclude={"index"}) for call in message.tool_calls]
    return found


TokenIds = Annotated[Many[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionRequest(Sampling):
    """Of base models too. `return_token_ids` adds all sampled ids and their log-probabilities, the stop token's
    included; `return_experts` also the experts chosen where each was predicted, one list a layer. Choice i draws from
    the stream `first_stream` + i of the seed."""

    prompt: (
        str
        | Annotated[Many[str], Field(min_length=1, max_length=MAX_CONTINUATIONS)]
        | TokenIds
        | Annotated[Many[TokenIds], Field(min_length=1, max_length=MAX_CONTINUATIONS)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] = False
    return_token_ids: bool = False
    return_experts: bool = False
    first_stream: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @property
    def most(self) -> int:
        return self.max_tokens or COMPLETION_TOKENS

    @property
    def top_log_probs(self) -> int:
        return self.logprobs or 0

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[row for row in self.prompt if isinstance(row, int)]]
        return [part for part in self.prompt if not isinstance(part, int)]


class WeightsRequest(Wire):
    """New weights: a file of the server's folder for them, and the hash that they should have."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}\.safetensors$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class TokenizeRequest(Wire):
    """Either `text`, as plain text without [BOS], or `messages` with `tools`, up to where an answer begins."""

    model: str | None = None
    text: str | None = None
    messages: Annotated[Many[ChatMessage], Field(min_length=1)] | None = None
    tools: Many[Tool] = Field(default_factory=list, max_length=MAX_TOOLS)

    def dialogue(self) -> Dialogue:
        messages = [_message(message) for message in self.messages or ()]
        return Dialogue(messages, [tool.spec() for tool in self.tools])
