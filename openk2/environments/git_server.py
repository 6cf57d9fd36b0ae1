"""The live `mcp-server-git` over the fixture repositories, and its recording.

The model sees the repositories' short names; real folders are put in and taken
out here and never reach it. `python -m openk2.environments.git_server` records
the server's answers to every sensible call into `git_recording.jsonl`, which is
what training and evaluation replay.

Left out: the server's tools that change a repository, and its diffs (too long
for a small model to read).
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openk2.environments.git_fixture import (
    GIT_SPECS,
    MAX_LOG,
    RECORDING,
    build_repositories,
    fixture_files,
    git_environment_variables,
)
from openk2.environments.mcp import McpServer
from openk2.environments.recording import Call, record
from openk2.environments.tools import short_line
from openk2.observe.files import write_atomic
from openk2.protocols import ToolError, ToolSpec

_HASH = re.compile(r"\b[0-9a-f]{40}\b")


class GitServer:
    """The live `mcp-server-git` over fresh fixture repositories, as an `Environment`.

    Raises `EnvironmentFailure` if the server cannot be started or dies, and
    `OSError` or `CalledProcessError` if there is no usable `git`.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="openk2-git-")
        try:
            # Resolved, because the server may answer with the path behind a symbolic link.
            self._root = Path(self._folder.name).resolve()
            self._paths = build_repositories(self._root)
            self._server = McpServer([sys.executable, "-m", "mcp_server_git"], env=git_environment_variables())
        except BaseException:
            self._folder.cleanup()
            raise

    def declarations(self) -> list[ToolSpec]:
        return list(GIT_SPECS)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        repository = str(arguments.get("repo_path"))
        if repository not in self._paths:
            raise ToolError(short_line(f"no repository {repository!r}"))
        try:
            answer = self._server.call(name, {**arguments, "repo_path": str(self._paths[repository])})
        except ToolError as error:
            reason = str(error).removeprefix(f"Error executing tool {name}: ")
            raise ToolError(short_line(self._hide_paths(reason))) from None
        # Seven digits name a commit well enough, and a small model need not read forty.
        return _HASH.sub(lambda match: match[0][:7], self._hide_paths(answer)).strip()

    def close(self) -> None:
        self._server.close()
        self._folder.cleanup()

    def _hide_paths(self, text: str) -> str:
        return text.replace(f"{self._root}/", "").replace(str(self._root), "")


def fixture_calls() -> list[Call]:
    """Every call that a task may expect, and the mistakes nearest to them."""
    calls: list[Call] = []
    for repository, branches in fixture_files().items():
        for branch, files in branches.items():
            for revision in (*(f"{branch}:{file}" for file in files), f"{branch}:", f"{branch}:MISSING"):
                calls.append(("git_show", {"repo_path": repository, "revision": revision}))
        calls.append(("git_log", {"repo_path": repository}))
        for count in range(1, MAX_LOG + 1):
            calls.append(("git_log", {"repo_path": repository, "max_count": count}))
        for kind in ("local", "all"):
            calls.append(("git_branch", {"repo_path": repository, "branch_type": kind}))
    return calls


def main() -> None:
    """Record the live server's answers."""
    server = GitServer()
    try:
        text = record(server, fixture_calls())
    finally:
        server.close()
    write_atomic(RECORDING, text)
    print(f"{RECORDING.name}: {text.count(chr(10))} calls")


if __name__ == "__main__":
    main()
