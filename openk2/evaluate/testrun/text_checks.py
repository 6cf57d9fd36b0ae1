"""Checks of an answer's text: exact, contains, regex, numeric, json_schema.

Only the answer is looked at, never the reasoning beside it. Left out: fuzzy
likeness, and models as judges.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry

from openk2.evaluate.answers import boxed_answer, parse_number
from openk2.evaluate.testrun import fields
from openk2.evaluate.testrun.replies import Reply
from openk2.evaluate.testrun.verdicts import PASSED, Verdict, failed
from openk2.protocols import ToolSpec

# A plain decimal that is no part of a name (x1, H2O) and no exponent (m^2, 10^{5}); a unit may follow at once (60km).
_BEFORE = r"(?<![A-Za-z0-9_.^])(?<!\^\{)"
_NUMBER = re.compile(rf"{_BEFORE}-?\$?(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|{_BEFORE}-?\.\d+", re.ASCII)
_WIDE = str.maketrans("０１２３４５６７８９．，－−", "0123456789.,--")


class TextCheck:
    """What all checks of text share."""

    @property
    def wants_calls(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Exact(TextCheck):
    """The trimmed answer is one of `texts`."""

    texts: tuple[str, ...]

    @classmethod
    def parse(cls, value: Any, where: str) -> Exact:
        return cls(tuple(text.strip() for text in fields.texts(value, where)))

    def judge(self, reply: Reply, tools: Mapping[str, ToolSpec]) -> Verdict:
        said = reply.content.strip()
        return (
            PASSED
            if said in self.texts
            else failed("wrong", f"saw {fields.quoted(said)}, expected {_options(self.texts)}")
        )


@dataclass(frozen=True, slots=True)
class Contains(TextCheck):
    """One of `texts` stands somewhere in the answer, case and all."""

    texts: tuple[str, ...]

    @classmethod
    def parse(cls, value: Any, where: str) -> Contains:
        return cls(fields.texts(value, where))

    def judge(self, reply: Reply, tools: Mapping[str, ToolSpec]) -> Verdict:
        found = any(text in reply.content for text in self.texts)
        return PASSED if found else failed("wrong", f"nowhere does it say {_options(self.texts)}")


@dataclass(frozen=True, slots=True)
class Regex(TextCheck):
    """Python's `re.search` finds the pattern in the trimmed answer."""

    pattern: re.Pattern[str]

    @classmethod
    def parse(cls, value: Any, where: str) -> Regex:
        try:
            return cls(re.compile(fields.a_text(value, where)))
        except re.error as error:
            fields.refuse(where, value, f"a regular expression of Python's ({error})")

    def judge(self, reply: Reply, tools: Mapping[str, ToolSpec]) -> Verdict:
        found = self.pattern.search(reply.content.strip())
        return PASSED if found else failed("wrong", f"nothing matches {fields.quoted(self.pattern.pattern)}")


@dataclass(frozen=True, slots=True)
class Numeric(TextCheck):
    r"""The last number in \boxed{}, or else the last of the answer, lies within `tolerance` of `value`."""

    value: Decimal
    tolerance: Decimal

    @classmethod
    def parse(cls, value: Any, tolerance: Any, where: str) -> Numeric:
        number = fields.a_number(value, where)
        return cls(Decimal(str(number)), Decimal(str(fields.a_number(tolerance, f"{where} tolerance", least=0))))

    def judge(self, reply: Reply, tools: Mapping[str, ToolSpec]) -> Verdict:
        said = stated_number(reply.content)
        if said is None:
            return failed("unparsable", f"saw no number, expected {self.value}")
        close = abs(said - self.value) <= self.tolerance
        spread = f" within {self.tolerance}" if self.tolerance else ""
        return PASSED if close else failed("wrong", f"saw {said}, expected {self.value}{spread}")


def stated_number(text: str) -> Decimal | None:
    r"""The number that an answer ends with; what stands in \boxed{} goes before."""
    plain = text.translate(_WIDE).replace("{,}", ",").replace("\\,", "").replace("\\$", "$")
    for place in (boxed_answer(plain) or "", plain):
        found = _NUMBER.findall(place)
        if found:
            return parse_number(found[-1])
    return None


@dataclass(frozen=True, slots=True)
class JsonSchema(TextCheck):
    """The answer is JSON, alone or as the only thing in a code fence, and fits the schema."""

    schema: Mapping[str, Any]

    @classmethod
    def parse(cls, value: Any, where: str) -> JsonSchema:
        return cls(fields.a_schema(value, where))

    def judge(self, reply: Reply, tools: Mapping[str, ToolSpec]) -> Verdict:
        fence = re.fullmatch(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", reply.content.strip(), re.DOTALL)
        try:
            value = fields.parse_json(fence[1] if fence else reply.content)
        except ValueError as error:
            return failed("unparsable", f"not JSON: {error}")
        return schema_verdict(self.schema, value, "wrong")


def schema_verdict(schema: Mapping[str, Any], value: Any, failure: str) -> Verdict:
    """Passed where the value fits; else the first thing that does not."""
    try:
        # An empty registry: nothing is ever fetched.
        for error in Draft202012Validator(dict(schema), registry=Registry()).iter_errors(value):
            return failed(failure, f"{error.json_path}: {fields.quoted(error.message)}")
    except RecursionError:
        return failed(failure, "nested too deeply to be judged")
    return PASSED


def _options(texts: tuple[str, ...]) -> str:
    return " or ".join(fields.quoted(text) for text in texts)
