"""Dialogues on disk: OpenAI-format chat JSONL, ours from synthesis or anyone's, validated line by line.

A line is `{"messages": [...], "tools": [...]}`; lines from synthesis also
carry the task they carry out. Validation split by a hash of the line, so it is
stable under adding dialogues. Left out: rewriting what is wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openk2.chat.codec import Codec
from openk2.chat.validate import validate_chat
from openk2.data.loader import Example
from openk2.protocols import Message, Task, ToolSpec, task_from_dict


@dataclass(frozen=True)
class Dialogue:
    """One line. `task` is None for dialogues that are not ours; `held_out` says on which side of the split it is."""

    messages: list[Message]
    tools: list[ToolSpec]
    kind: str
    task: Task | None
    held_out: bool


def read_dialogues(path: Path | str, *, validation_share: float = 0.02) -> list[Dialogue]:
    """All dialogues of a JSONL file. Raises ValueError for the first line that cannot be used, naming it."""
    path = Path(path)
    try:
        found = [_dialogue(line, number, validation_share) for number, line in _lines(path)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not found:
        raise ValueError(f"{path}: saw no dialogues, expected one JSON object a line")
    return found


def read_dialogue(path: Path | str, index: int, *, validation_share: float = 0.02) -> Dialogue:
    """Dialogue `index` (from 0) of a JSONL file; the others are not looked at. Raises ValueError if it has none."""
    path = Path(path)
    try:
        lines = _lines(path)
        if not 0 <= index < len(lines):
            raise ValueError(f"saw {len(lines)} dialogues, expected one of index {index}")
        number, line = lines[index]
        return _dialogue(line, number, validation_share)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _lines(path: Path) -> list[tuple[int, bytes]]:
    """Lines that are not blank, each with its number from 1."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"{error.strerror}, expected a readable JSONL file of dialogues") from None
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _dialogue(line: bytes, number: int, validation_share: float) -> Dialogue:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number}: saw broken JSON ({error}), expected one JSON object a line") from None
    messages, tools = validate_chat(value, number)
    task = task_from_dict(value["task"]) if "task" in value and value.get("kind") == "tool" else None
    share = int.from_bytes(hashlib.sha256(line).digest()[:8], "big") / 2**64
    return Dialogue(messages, tools, str(value.get("kind", "")), task, share < validation_share)


def encode_dialogues(dialogues: Sequence[Dialogue], codec: Codec) -> list[Example]:
    """Token ids and loss masks, in order."""
    encoded = (codec.encode(dialogue.messages, dialogue.tools or None) for dialogue in dialogues)
    return [(example.ids, example.mask) for example in encoded]


def dialogues_digest(dialogues: Sequence[Dialogue]) -> str:
    """SHA-256 of what is said and declared: which data a run began with."""
    digest = hashlib.sha256()
    for dialogue in dialogues:
        digest.update(json.dumps([dialogue.messages, dialogue.tools], sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
