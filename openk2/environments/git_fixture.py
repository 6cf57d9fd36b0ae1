"""Small git repositories with fixed content, for the git tools to read.

Each is written by one `git fast-import` with fixed authors, dates and branches,
so every commit hash is the same on every machine. `git_server.py` serves them
live, `git_recording.jsonl` holds the live server's answers.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from openk2.environments.tools import tool_spec
from openk2.protocols import ToolSpec

RECORDING = Path(__file__).with_name("git_recording.jsonl")
MAX_LOG = 3

GIT_SPECS: tuple[ToolSpec, ...] = (
    tool_spec("git_show", "Show a file as branch:FILE", {"repo_path": "string", "revision": "string"}),
    tool_spec("git_log", "Show last commits", {"repo_path": "string"}, max_count="integer"),
    tool_spec("git_branch", "List branches", {"repo_path": "string", "branch_type": "string"}),
)

_LARGE = tuple("shop blog game bank maps mail chat news wiki shell radio photo music player store farm".split())
# Many, and small: with a dozen repositories a model learns their last commits by heart instead of reading them.
_SMALL = tuple(
    "forum clock hotel train paint audio video pilot robot media trade guide proxy mixer ledger sensor editor viewer "
    "finder planner tracker builder backup relay".split()
)
_REPOSITORIES = (*_LARGE, *_SMALL)
_BRANCHES = ("main", "dev", "test", "beta")
_FILES: dict[str, tuple[str, ...]] = {
    "OWNER": ("Ada", "Grace", "Linus", "Alan", "Edsger", "Barbara", "Dennis"),
    "LANGUAGE": ("Python", "Rust", "Java", "Ruby", "Swift"),
    "LICENSE": ("MIT", "Apache", "GPL", "BSD"),
    "COLOR": ("red", "green", "blue", "yellow", "purple", "orange"),
}
_AUTHORS = ("Ada", "Grace", "Linus", "Alan", "Edsger", "Barbara", "Dennis")
_VERBS = ("Add", "Fix", "Update", "Remove", "Move", "Clean", "Check", "Split", "Rename")
_NOUNS = tuple("parser,login page,search,cache,tests,menu,docs,header,upload form,font,logo,index,reader".split(","))
_FIRST_COMMIT = 1_704_096_000  # 2024-01-01 08:00:00 UTC
_DAY = 86_400


def fixture_files() -> dict[str, dict[str, dict[str, str]]]:
    """What the repositories hold: repository -> branch -> file -> its one line."""
    return {
        name: {branch: _branch_files(r, b) for b, branch in enumerate(_branches(r))}
        for r, name in enumerate(_REPOSITORIES)
    }


def _branches(r: int) -> tuple[str, ...]:
    return _BRANCHES[: 2 + r % 3] if r < len(_LARGE) else _BRANCHES[:1]


def fixture_log() -> dict[str, list[tuple[str, str]]]:
    """The (author, message) pairs of each repository's main branch, newest first."""
    return {name: [_commit(r, 0, step) for step in reversed(range(MAX_LOG))] for r, name in enumerate(_REPOSITORIES)}


def fixture_classes() -> list[list[str]]:
    """Words that exclude each other in an answer: the values of each file, the authors of commits."""
    return [*(list(values) for values in _FILES.values()), list(_AUTHORS)]


def _branch_files(r: int, b: int) -> dict[str, str]:
    # Odd multipliers spread the values, so that neither repository, branch nor file alone tells one.
    files = {name: values[(5 * r + 3 * b + r * b + k) % len(values)] for k, (name, values) in enumerate(_FILES.items())}
    files["PORT"] = str(8000 + (137 * r + 411 * b + 59 * r * b) % 1000)
    files["VERSION"] = f"{1 + (r + b) % 4}.{(7 * r + 3 * b) % 10}.{(3 * r + 5 * b) % 10}"
    return files if r < len(_LARGE) else {name: files[name] for name in ("OWNER", "VERSION")}


def _commit(r: int, b: int, step: int) -> tuple[str, str]:
    author = _AUTHORS[(2 * r + b + 3 * step) % len(_AUTHORS)]
    return author, f"{_VERBS[(r + 2 * step + b) % len(_VERBS)]} {_NOUNS[(3 * r + step + 2 * b) % len(_NOUNS)]}"


def build_repositories(folder: Path) -> dict[str, Path]:
    """Create the bare repositories below `folder`; name -> path. Needs the `git` command."""
    paths = {}
    for r, (name, branches) in enumerate(fixture_files().items()):
        path = folder / name
        _git("init", "--quiet", "--bare", "--object-format=sha1", "--initial-branch=main", str(path))
        _git("-C", str(path), "fast-import", "--quiet", stdin=_fast_import(r, branches))
        paths[name] = path
    return paths


def _fast_import(r: int, branches: Mapping[str, Mapping[str, str]]) -> str:
    stream = ""
    for b, (branch, files) in enumerate(branches.items()):
        for step in range(MAX_LOG):
            author, message = _commit(r, b, step)
            when = _FIRST_COMMIT + _DAY * (31 * r + 7 * b + step)
            stream += f"commit refs/heads/{branch}\ncommitter {author} <{author.lower()}@example.com> {when} +0000\n"
            stream += f"data {len(message) + 1}\n{message}\n\n"
            # A branch's first commits hold a part of its files, the last one all of them.
            for name, line in list(files.items())[: len(files) * (step + 1) // MAX_LOG]:
                stream += f"M 100644 inline {name}\ndata {len(line) + 1}\n{line}\n\n"
        stream += "\n"
    return stream


def git_environment_variables() -> dict[str, str]:
    """Only what git needs, and none of the user's own settings."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": os.devnull,
        "LC_ALL": "C",
        "TZ": "UTC",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
    }


def _git(*arguments: str, stdin: str = "") -> None:
    subprocess.run(
        ["git", *arguments], input=stdin, text=True, check=True, env=git_environment_variables(), capture_output=True
    )
