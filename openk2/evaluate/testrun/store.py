"""answers.jsonl: every answer that was ever given in a run folder, a line each, on disk as soon as it is there.

Invariants: lines are only appended, and flushed to disk before the next request
is counted as done; a line that a killed process left half written is dropped,
and so its answer is asked for again. Of several lines with one key the last
counts. The caller holds the folder's lock while it appends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from openk2.evaluate.testrun.replies import Answer, Key
from openk2.observe.files import sync_folder

ANSWERS_FILE = "answers.jsonl"


def read_answers(folder: Path) -> dict[Key, Answer]:
    """The answers by key, in the order in which they came. ValueError for a broken line that is not the last."""
    path = folder / ANSWERS_FILE
    found: dict[Key, Answer] = {}
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            answer = Answer.from_dict(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{number}: saw a line that is no answer ({type(error).__name__}: {error}), expected what a "
                "test run wrote; restore the file or remove the line"
            ) from None
        found.pop(answer.key, None)
        found[answer.key] = answer
    return found


class AnswerLog:
    """The file, open for appending; use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        path = folder / ANSWERS_FILE
        self._file = open(path, "ab")  # noqa: SIM115 (closed by __exit__)
        whole = path.read_bytes().rfind(b"\n") + 1
        self._file.truncate(whole)
        sync_folder(folder)

    def append(self, answer: Answer) -> None:
        """Returns once the answer is on disk."""
        line = json.dumps(answer.as_dict(), ensure_ascii=False, allow_nan=False) + "\n"
        # A server may say half a surrogate pair, which UTF-8 cannot hold.
        self._file.write(line.encode("utf-8", "backslashreplace"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def changed_prompts(answers: Mapping[Key, Answer], hashes: Mapping[str, str]) -> list[str]:
    """Ids of prompts that have answers, but none to what they ask now (`hashes`, by id)."""
    asked: dict[str, set[str]] = {}
    for answer in answers.values():
        asked.setdefault(answer.prompt, set()).add(answer.prompt_hash)
    return [prompt for prompt, now in hashes.items() if prompt in asked and now not in asked[prompt]]
