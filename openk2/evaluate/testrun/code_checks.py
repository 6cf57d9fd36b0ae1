"""The check of code: the function in the answer passes unit tests, which run in the sandbox."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openk2.evaluate.testrun import fields
from openk2.evaluate.testrun.replies import Reply
from openk2.evaluate.testrun.sandbox import run_tests
from openk2.evaluate.testrun.text_checks import TextCheck
from openk2.evaluate.testrun.verdicts import PASSED, Verdict, failed
from openk2.protocols import ToolSpec

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n]*\n(.*?)^[ \t]*\1[ \t]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class UnitTests(TextCheck):
    """`tests` are Python that fails by an exception; they find the answer's names, `entry_point` among them."""

    tests: str
    entry_point: str

    @classmethod
    def parse(cls, tests: Any, entry_point: Any, where: str) -> UnitTests:
        found = cls(fields.a_text(tests, where), fields.a_text(entry_point, f"{where} entry_point"))
        if not found.entry_point.isidentifier():
            fields.refuse(f"{where} entry_point", entry_point, "the name of a function")
        try:
            ast.parse(found.tests)
        except SyntaxError as error:
            fields.refuse(where, tests, f"Python ({error.msg} in line {error.lineno})")
        return found

    def judge(self, reply: Reply, tools: Mapping[str, ToolSpec]) -> Verdict:
        code = written_code(reply.content, self.entry_point)
        if code is None:
            return failed("unparsable", f"saw no Python that defines {self.entry_point}")
        finding = run_tests(code, self.tests, self.entry_point)
        if not finding.failure:
            return PASSED
        return failed("code_timeout" if finding.timed_out else "code_failed", finding.failure)


def written_code(text: str, entry_point: str) -> str | None:
    """The last code block that defines `entry_point`, or the whole answer where it is code; None if there is none."""
    blocks = [match[3] for match in _FENCE.finditer(text) if match[2].casefold() in ("", "python", "python3", "py")]
    for block in reversed(blocks or [text]):
        if _defines(block, entry_point):
            return block
    return None


def _defines(code: str, name: str) -> bool:
    try:
        statements = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and statement.name == name:
            return True
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return True
    return False
