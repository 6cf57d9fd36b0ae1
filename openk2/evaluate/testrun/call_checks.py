"""The check of tool calls: exactly the calls that are wanted, in any order, with arguments that are right.

Arguments always have to fit the tool's own declaration; then they are compared
by value (5 is 5.0, true is not 1) or judged by the check's schema. Left out:
running the tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openk2.environments.tools import check_arguments, parse_arguments
from openk2.evaluate.testrun import fields
from openk2.evaluate.testrun.replies import Reply, ToolCall
from openk2.evaluate.testrun.text_checks import schema_verdict
from openk2.evaluate.testrun.verdicts import PASSED, Verdict, failed
from openk2.protocols import ToolError, ToolSpec


@dataclass(frozen=True, slots=True)
class WantedCall:
    """`arguments` are exact, `schema` judges them; where both are None, any that fit the declaration will do."""

    name: str
    arguments: Mapping[str, Any] | None = None
    schema: Mapping[str, Any] | None = None

    @classmethod
    def parse(cls, value: Any, where: str) -> WantedCall:
        fields.an_object(value, where, ("name", "arguments", "schema"), ("name",))
        if "arguments" in value and "schema" in value:
            raise ValueError(f"{where}: saw both 'arguments' and 'schema', expected one of them; drop one")
        return cls(
            fields.a_text(value["name"], f"{where}.name"),
            fields.an_object(value["arguments"], f"{where}.arguments") if "arguments" in value else None,
            fields.a_schema(value["schema"], f"{where}.schema") if "schema" in value else None,
        )

    def judge(self, arguments: Mapping[str, Any]) -> Verdict:
        if self.schema is not None:
            return schema_verdict(self.schema, arguments, "wrong_arguments")
        if self.arguments is not None and not same_json(arguments, self.arguments):
            seen, wanted = fields.quoted(arguments), fields.quoted(self.arguments)
            return failed("wrong_arguments", f"{self.name}: saw {seen}, expected {wanted}")
        return PASSED


@dataclass(frozen=True, slots=True)
class Calls:
    """The answer makes the `wanted` calls and no other; without any, it must be text."""

    wanted: tuple[WantedCall, ...]

    @classmethod
    def parse(cls, value: Any, where: str) -> Calls:
        """null for none, an object for one, a list for several."""
        if value is None:
            return cls(())
        listed = value if isinstance(value, list) else [value]
        if not listed:
            fields.refuse(where, value, "null, a call, or a list of calls")
        return cls(tuple(WantedCall.parse(entry, where) for entry in listed))

    @property
    def wants_calls(self) -> bool:
        return bool(self.wanted)

    def judge(self, reply: Reply, tools: Mapping[str, ToolSpec]) -> Verdict:
        if not reply.tool_calls:
            names = ", ".join(want.name for want in self.wanted)
            return failed("no_tool_call", f"saw text only, expected a call of {names}") if self.wanted else PASSED
        if not self.wanted:
            return failed("unexpected_tool_call", f"saw a call of {reply.tool_calls[0].name}, expected text only")
        missing = list(self.wanted)
        for call in reply.tool_calls:
            found = self._take(call, missing, tools)
            if not found.passed:
                return found
        if missing:
            return failed("no_tool_call", f"saw no call of {missing[0].name} that is wanted")
        return PASSED

    def _take(self, call: ToolCall, missing: list[WantedCall], tools: Mapping[str, ToolSpec]) -> Verdict:
        """Strike the call off what is missing, or say what is wrong with it."""
        if call.name not in {want.name for want in self.wanted}:
            return failed("wrong_tool", f"called {call.name}")
        try:
            arguments = parse_arguments(call.arguments)
            if call.name in tools:
                check_arguments(tools[call.name], arguments)
        except ToolError as error:
            return failed("invalid_arguments", f"{call.name}: {error}")
        verdicts = [(want, want.judge(arguments)) for want in missing if want.name == call.name]
        for want, verdict in verdicts:
            if verdict.passed:
                missing.remove(want)
                return PASSED
        return verdicts[0][1] if verdicts else failed("unexpected_tool_call", f"called {call.name} once too often")


def same_json(left: Any, right: Any) -> bool:
    """Equal as JSON values: 5 and 5.0 are, true and 1 are not."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same_json(left[key], right[key]) for key in left)
    if _is_list(left) and _is_list(right):
        return len(left) == len(right) and all(same_json(a, b) for a, b in zip(left, right, strict=True))
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
