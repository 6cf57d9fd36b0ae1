"""The page of a test run: prompts in rows, targets side by side.

Invariants: one file that asks for nothing over the network; what models said
reaches the page as JSON and is shown as text, never as markup; the content
policy lets no script run but the page's own, which it knows by its hash. What
the page does is in page.html.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openk2.evaluate.testrun.figures import cell_figures
from openk2.evaluate.testrun.gather import Cell
from openk2.evaluate.testrun.prompts import Prompt, digest
from openk2.evaluate.testrun.replies import ToolCall
from openk2.evaluate.testrun.targets import Price
from openk2.observe.page import PALETTE, escape

_TEMPLATE = Path(__file__).with_name("page.html")
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PageColumn:
    """A target's answers under its heading, by prompt id."""

    name: str
    note: str
    price: Price | None
    cells: Mapping[str, Sequence[Cell]]


def render_page(
    *,
    title: str,
    run: str,
    summary: str,
    prompts: Sequence[Prompt],
    columns: Sequence[PageColumn],
    annotations: Mapping[str, Mapping[str, str]],
) -> str:
    """The page; `summary` is markup for its top, `run` is what a browser keeps its annotations under."""
    template = _TEMPLATE.read_text(encoding="utf-8")
    script = _SCRIPT.search(template)
    assert script is not None, "page.html has its script"
    data = {
        "run": run,
        "columns": [{"name": column.name, "note": column.note} for column in columns],
        "prompts": [_prompt(prompt, columns) for prompt in prompts],
        "annotations": annotations,
    }
    parts = {
        "TITLE": escape(title),
        "HASH": base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode(),
        "PALETTE": PALETTE,
        "SUMMARY": summary,
        "DATA": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    }
    # In one pass, so that nothing that was put in is looked at again.
    return re.sub("@@([A-Z]+)@@", lambda match: parts[match[1]], template)


def _prompt(prompt: Prompt, columns: Sequence[PageColumn]) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "title": prompt.title,
        "category": prompt.category,
        "messages": [_message(message) for message in prompt.request["messages"]],
        "tools": [_pretty(tool["function"]) for tool in prompt.request.get("tools", ())],
        "check": _pretty(prompt.source["check"]) if "check" in prompt.source else "",
        "answers": [
            [_answer(cell, column.price) for cell in column.cells.get(prompt.id, ())] for column in columns
        ],
    }  # fmt: skip


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return {
        "role": message["role"],
        "text": content if isinstance(content, str) else "" if content is None else _pretty(content),
        "calls": [{"name": call["name"], "arguments": _pretty_text(call["arguments"])} for call in calls],
    }


def _answer(cell: Cell, price: Price | None) -> dict[str, Any]:
    found = {"key": digest(list(cell.request.key)), **cell_figures(cell, price)}
    if cell.answer is None:
        return found
    reply = cell.answer.reply
    return found | {
        "content": reply.content,
        "reasoning": reply.reasoning,
        "refusal": reply.refusal,
        "calls": [_call(call) for call in reply.tool_calls],
    }


def _call(call: ToolCall) -> dict[str, str]:
    return {"name": call.name, "arguments": _pretty_text(call.arguments)}


def _pretty_text(text: str) -> str:
    """JSON text laid out; what is none stays as it is."""
    try:
        return _pretty(json.loads(text))
    except (ValueError, RecursionError):
        return text


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
