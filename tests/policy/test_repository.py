"""What is shipped: configs that parse, pages that are up to date, commands that exist, and nothing private."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from openk2.plan import claims

# In two parts each, so that this file does not hold what it looks for.
PRIVATE = [
    r"(?<![\w.~-])/wo" r"rk/",
    r"(?<![\w.~-])/ro" r"ot/",
    r"(?<![\w.~-])/ho" r"me/\w",
    r"/op" r"t/wheels",
    r"pypi\.o" r"rg",
    r"pythonh" r"osted",
    r"download\.pyt" r"orch",
    r"registry\.npm" r"js",
]


def tracked(repository: Path) -> list[Path]:
    """The files of the checkout that are, or would be, committed."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.decode().split("\0") if name and (path := repository / name).is_file()]


def test_no_machine_path_and_no_registry_host(repository: Path) -> None:
    pattern = re.compile("|".join(PRIVATE))
    found = []
    for path in tracked(repository):
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found += [f"{path.relative_to(repository)}: {match[0]}" for match in pattern.finditer(text)]
    assert not found, "\n".join(found)


def test_shipped_data_files_parse(repository: Path) -> None:
    for path in tracked(repository):
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl":
            for line in path.read_text(encoding="utf-8").splitlines():
                json.loads(line)


def test_shipped_data_files_are_packaged(repository: Path) -> None:
    wanted = {".json", ".jsonl", ".html", ".md", ".txt", ".typed", ".py", ".cpp", ".css", ".js", ".svg"}
    odd = [path for path in tracked(repository) if repository / "openk2" in path.parents and path.suffix not in wanted]
    assert not odd, f"package-data in pyproject.toml would leave out {odd}"


def test_the_page_of_claims_is_up_to_date(repository: Path) -> None:
    page = (repository / "docs" / "claims-about-k2.md").read_text(encoding="utf-8")
    assert page == claims.render(), "run `python -m openk2.plan.claims --write docs/claims-about-k2.md`"


def test_claims_carry_the_planners_figures() -> None:
    page = claims.render()
    counted = "35.6 28.4 56.9 71.1 62.44 49.95 656 1,026,408,232,448 32.86B 31.69B 30.51B"
    for figure in counted.split():
        assert figure in page
    assert "{" not in page


def make_targets(repository: Path) -> set[str]:
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))


def test_make_has_the_targets_that_are_promised(repository: Path) -> None:
    assert {"speedrun", "test", "test-all", "lint", "bench", "help"} <= make_targets(repository)


def shown_commands(page: Path) -> list[list[str]]:
    """The words of each command in a page's bash blocks, prompt and comment removed."""
    blocks = re.findall(r"^```(?:bash|sh|console|shell)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    lines = [line.strip().removeprefix("$ ").partition(" #")[0] for block in blocks for line in block.splitlines()]
    return [line.split() for line in lines if line.split()[1:] and not line.startswith("#")]


def pages(repository: Path) -> list[Path]:
    found = [repository / name for name in ("README.md", "RECIPE.md", "CONTRIBUTING.md")]
    return [page for page in [*found, *sorted((repository / "docs").rglob("*.md"))] if page.is_file()]


def test_make_commands_in_the_pages_exist(repository: Path) -> None:
    targets = make_targets(repository)
    for page in pages(repository):
        for words in shown_commands(page):
            if words[0] == "make":
                goals = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
                assert goals <= targets, f"{page.name}: make has no {goals - targets}"


def test_openk2_commands_in_the_pages_exist(repository: Path) -> None:
    shown = [words[1] for page in pages(repository) for words in shown_commands(page) if words[:1] == ["openk2"]]
    shown += re.findall(r"`openk2 ([\w-]+)", claims.render())
    for name in sorted({name for name in shown if not name.startswith("-")}):
        done = subprocess.run(
            [sys.executable, "-c", "import sys; from openk2.cli import main; sys.exit(main())", name, "--help"],
            cwd=repository,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"openk2 {name}: {done.stderr}"
