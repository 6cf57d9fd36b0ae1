"""What is found about a reply: passed, failed for a typed reason, or nothing to say.

`passed` is None where there was no answer to judge (a fault) or nothing to
judge it by; such replies stay out of every rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from openk2.evaluate.testrun.replies import FAULTS, Reply
from openk2.protocols import ToolSpec

FAILURES = (
    "refused",
    "empty",
    "length",
    "wrong",
    "unparsable",
    "no_tool_call",
    "unexpected_tool_call",
    "wrong_tool",
    "invalid_arguments",
    "wrong_arguments",
    "code_failed",
    "code_timeout",
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`failure` is "" or one of FAILURES or FAULTS; `reason` is for people."""

    passed: bool | None
    failure: str = ""
    reason: str = ""

    @property
    def name(self) -> str:
        """One word for tables and filters."""
        if self.failure in FAULTS:
            return "unanswered"
        return {True: "pass", False: "fail", None: "unchecked"}[self.passed]


class Check(Protocol):
    """One thing that an answer must satisfy."""

    def judge(self, reply: Reply, tools: Mapping[str, ToolSpec]) -> Verdict:
        """`tools` are the prompt's declarations by name. The verdict passes or fails, nothing else."""
        ...

    @property
    def wants_calls(self) -> bool:
        """Whether the answer should be tool calls, and not text."""
        ...


PASSED = Verdict(True)


def failed(failure: str, reason: str) -> Verdict:
    return Verdict(False, failure, reason)


def judge(reply: Reply, checks: Sequence[Check], tools: Mapping[str, ToolSpec]) -> Verdict:
    """The first thing that is wrong. An answer that was cut by its length passes if it passes all the same."""
    if reply.fault is not None:
        return Verdict(None, reply.fault.kind, reply.fault.message)
    found = _unusable(reply, checks)
    for check in checks:
        found = found or _failure(check.judge(reply, tools))
    if found is None:
        return PASSED if checks else Verdict(None, reason="there is no check")
    cut = reply.finish_reason == "length" and found.failure != "refused"
    if cut:
        found = failed("length", f"cut at its token limit ({found.reason})")
    return found if checks else Verdict(None, found.failure, found.reason)


def _failure(verdict: Verdict) -> Verdict | None:
    return None if verdict.passed else verdict


def _unusable(reply: Reply, checks: Sequence[Check]) -> Verdict | None:
    """What is wrong with an answer whatever it should have been."""
    if reply.refusal or reply.finish_reason == "content_filter":
        return failed("refused", reply.refusal or "the server's filter ended the answer")
    if reply.content.strip():
        return None
    if not reply.tool_calls:
        return failed("empty", "neither text nor a tool call")
    if checks and not any(check.wants_calls for check in checks):
        names = ", ".join(call.name for call in reply.tool_calls)
        return failed("unexpected_tool_call", f"called {names} instead of answering")
    return None
