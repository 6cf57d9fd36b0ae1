"""The pairwise question that K2's self-critique puts to the policy, and the rubrics it reads.

Synthesis bootstraps the critic with it, RL asks it, both through this one
form, so that what is trained is what is asked. Rubrics are files beside this
module that anyone can edit. Source: K2 report (arXiv
2507.20534), section 3.2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openk2.protocols import Message

RUBRIC_FOLDER = Path(__file__).parent / "rubrics"
CHOICES = ("A", "B")


def load_rubrics(folder: Path = RUBRIC_FOLDER) -> dict[str, str]:
    """Name -> text of every rubric file, sorted by name."""
    rubrics = {path.stem: path.read_text(encoding="utf-8").strip() for path in sorted(folder.glob("*.md"))}
    if not rubrics:
        raise ValueError(f"{folder}: saw no rubric, expected at least one .md file with a criterion")
    return rubrics


def last_exchange(messages: Sequence[Message]) -> str:
    """What a judge is shown of one sample: calls, results and the answer of its last user turn, one a line."""
    start = max(index for index, message in enumerate(messages) if message["role"] == "user")
    lines = []
    for message in messages[start + 1 :]:
        for call in message.get("tool_calls") or ():
            lines.append(f"call {call['function']['name']} {call['function']['arguments']}")
        if message["role"] == "tool":
            lines.append(f"result {message['content']}")
        elif message.get("content"):
            lines.append(f"answer {message['content']}")
    return "\n".join(lines) or "nothing"


def critique_messages(rubric: str, question: str, first: str, second: str) -> list[Message]:
    """The dialogue up to the critic's one-letter reply: which of two samples follows the rubric better."""
    return [
        {"role": "system", "content": f"You compare two replies. {rubric}"},
        {"role": "user", "content": f"{question}\nA:\n{first}\nB:\n{second}\nWhich is better, A or B?"},
    ]
