"""Sets of items in JSONL files: the ones that ship in `sets/`, and a user's own.

A line is a `Task` (it has "turns") or a simple question (it has "prompt").
Every line is checked before anything runs; the first bad one is named by file,
line, field, what was seen and what was expected.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openk2.environments.environment import open_environment
from openk2.evaluate.answers import parse_number
from openk2.evaluate.dataset_files import read_jsonl, text_field
from openk2.evaluate.generated import Question
from openk2.protocols import Task, task_from_dict

SETS_FOLDER = Path(__file__).with_name("sets")
SETS = ("phrasings", "freehand")
MATCHES = ("exact", "numeric", "contains")
QUESTION_FIELDS = {"prompt", "answer", "match", "id", "group"}


def load_set(name: str) -> list[Task]:
    """The tasks of `sets/NAME.jsonl`: hand-written ones that no generator of training data reads."""
    if name not in SETS:
        raise ValueError(f"evaluation set: saw {name!r}, expected one of {', '.join(SETS)}")
    tasks, questions = read_task_file(SETS_FOLDER / f"{name}.jsonl")
    assert not questions, f"{name}: a set of tasks holds a simple question"
    return tasks


def read_task_file(path: Path | str) -> tuple[list[Task], list[Question]]:
    """The tool tasks and the simple questions of a JSONL file, each in file order."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"--tasks: saw no file {path}, expected a JSONL file of tasks or questions")
    tasks: list[Task] = []
    questions: list[Question] = []
    seen: dict[str, int] = {}
    for number, line in read_jsonl(path):
        item = _task(path, number, line) if "turns" in line else _question(path, number, line)
        if item.id in seen:
            raise ValueError(
                f"{path}:{number}: field 'id': saw {item.id!r}, which line {seen[item.id]} has; expected a new one"
            )
        seen[item.id] = number
        if isinstance(item, Task):
            tasks.append(item)
        else:
            questions.append(item)
    if not seen:
        raise ValueError(f"{path}: saw no lines, expected at least one task or question")
    return tasks, questions


def _task(path: Path, number: int, line: dict[str, Any]) -> Task:
    """The task, after its tools have been opened once: an unknown tool or a broken setup is an error of the line."""
    try:
        task = task_from_dict(line)
        _check_tools(task)
        open_environment(task).close()
    except ValueError as error:
        raise ValueError(f"{path}:{number}: {error}") from None
    except (TypeError, KeyError, AttributeError) as error:  # a setup whose values have other types than the tools read
        raise ValueError(f"{path}:{number}: field 'setup': saw a value of the wrong type ({error})") from None
    return task


def _check_tools(task: Task) -> None:
    for name in task.tools:
        if not isinstance(name, str):
            raise ValueError(f"task {task.id}.tools: saw {name!r:.40}, expected the names of tools")
    for index, turn in enumerate(task.turns):
        for call in turn.calls:
            if call.name not in task.tools:
                raise ValueError(
                    f"task {task.id}: turns[{index}].calls: saw {call.name!r:.40}, "
                    f"expected a tool that the task offers ({', '.join(task.tools) or 'none'})"
                )


def _question(path: Path, number: int, line: dict[str, Any]) -> Question:
    if "prompt" not in line:
        raise ValueError(
            f"{path}:{number}: saw fields {', '.join(sorted(line))!r:.60}, "
            "expected 'turns' (a tool task) or 'prompt' (a question)"
        )
    unknown = sorted(set(line) - QUESTION_FIELDS)
    if unknown:
        raise ValueError(
            f"{path}:{number}: field {unknown[0]!r}: saw an unknown field, "
            f"expected {', '.join(sorted(QUESTION_FIELDS))}"
        )
    prompt, answer = (text_field(path, number, line, name) for name in ("prompt", "answer"))
    match = line.get("match", "exact")
    if match not in MATCHES:
        raise ValueError(f"{path}:{number}: field 'match': saw {match!r:.40}, expected {', '.join(MATCHES)}")
    if match == "numeric" and parse_number(answer) is None:
        raise ValueError(f"{path}:{number}: field 'answer': saw {answer!r:.40}, expected a number (match is numeric)")
    id_ = text_field(path, number, line, "id") if "id" in line else f"line-{number}"
    group = text_field(path, number, line, "group") if "group" in line else path.stem
    return Question(id_, group, prompt, answer, reference=answer, kind=match)
