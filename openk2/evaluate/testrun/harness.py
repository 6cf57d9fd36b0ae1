"""Run an answer's code and then its tests: `python harness.py`, inside the sandbox, in a folder with task.json.

Limits itself before anything of the answer runs, and leaves verdict.json with
the token that task.json held, so that an answer which ends the process early
has not passed. A file of its own without imports from the package.
"""

import json
import os
import resource
import sys
import traceback


def main() -> None:
    with open("task.json", encoding="utf-8") as file:
        task = json.load(file)
    os.remove("task.json")
    for limit, value in (
        (resource.RLIMIT_CPU, task["seconds"] + 1),
        (resource.RLIMIT_AS, task["bytes"]),
        (resource.RLIMIT_FSIZE, task["file_bytes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    failure = _run(task)
    with open("verdict.json", "w", encoding="utf-8") as file:
        json.dump({"token": task["token"], "failure": failure}, file)


def _run(task: dict) -> str:  # type: ignore[type-arg]
    """What failed, in a line; nothing if all passed."""
    names: dict = {"__name__": "answer"}  # type: ignore[type-arg]
    part = "the code"
    try:
        exec(compile(task["code"], "answer.py", "exec"), names)
        if not callable(names.get(task["entry_point"])):
            return f"no function {task['entry_point']}"
        part = "a test"
        exec(compile(task["tests"], "tests.py", "exec"), names)
    except BaseException as error:
        frames = [frame for frame in traceback.extract_tb(sys.exc_info()[2]) if frame.filename == "tests.py"]
        line = task["tests"].splitlines()[(frames[-1].lineno or 1) - 1].strip() if frames else ""
        said = f"{type(error).__name__}: {error}".strip(": ")
        return f"{part} failed: {said}" + (f" in {line}" if line else "")
    return ""


if __name__ == "__main__":
    main()
