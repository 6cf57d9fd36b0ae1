"""What a model said to a prompt, how long it took, and what came of a failed attempt.

Invariants: a fault is what kept us from an answer (network, server), never a
judgement of the answer; a number that the server did not give is None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FAULTS = ("http_error", "error_event", "timeout", "connection", "cut_stream", "bad_stream")
Key = tuple[str, str, str, int]  # target, prompt hash, request hash, sample


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as the model wrote it; `arguments` is text that should be JSON."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind` is one of FAULTS; `status` the HTTP status where there was one."""

    kind: str
    message: str
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, whole or as far as it came before the fault. Times in seconds from the sending of the request."""

    content: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str = ""
    model: str = ""  # as the server calls it
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_s: float | None = None
    total_s: float | None = None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply with what it answers: a line of answers.jsonl. `prompt` is the prompt's id when it was asked."""

    target: str
    prompt: str
    prompt_hash: str
    request_hash: str
    sample: int
    asked_at: str  # ISO 8601, UTC
    attempts: int
    reply: Reply = field(default_factory=Reply)

    @property
    def key(self) -> Key:
        return (self.target, self.prompt_hash, self.request_hash, self.sample)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> Answer:
        """Raises KeyError or TypeError for a line that no `as_dict` made."""
        said = dict(line["reply"])
        said["tool_calls"] = tuple(ToolCall(**call) for call in said["tool_calls"])
        said["fault"] = None if said["fault"] is None else Fault(**said["fault"])
        return cls(**{**line, "reply": Reply(**said)})
