"""The import contract, and that the torch-free part of the package is free of torch."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TORCH_FREE = ["openk2", "openk2.config", "openk2.protocols", "openk2.plan", "openk2.recipes", "openk2.observe"]

BLOCKED_IMPORT = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "mcp"}:
            raise ImportError(f"{name} is not available here")

sys.meta_path.insert(0, Refuse())
importlib.import_module(sys.argv[1])
"""


@pytest.mark.parametrize("module", TORCH_FREE)
def test_imports_where_torch_is_absent(module: str, repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED_IMPORT, module], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_block_blocks(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED_IMPORT, "torch"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and "not available here" in done.stderr


def test_import_contract(repository: Path) -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_package_has_its_line_in_the_contract(repository: Path) -> None:
    contract = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    lines = [name.strip(" ()") for line in contract["layers"] for name in line.split("|")]
    package = repository / "openk2"
    found = [path.parent for path in package.glob("*/__init__.py")] + [
        path for path in package.glob("*.py") if not path.stem.startswith("__")
    ]
    for path in found:
        name = f"openk2.{path.stem}"
        inside = [f"{name}.{inner.parent.name}" for inner in path.glob("*/__init__.py")]
        assert name in lines or (inside and set(inside) <= set(lines)), f"{name} is on no line of the import contract"


def test_the_model_knows_nothing_of_processes_environment_or_files(repository: Path) -> None:
    for path in (repository / "openk2" / "model").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = ["io"] if node.func.id == "open" else []
            for name in names:
                refused = name.startswith("torch.distributed") or name.partition(".")[0] in {"os", "io", "pathlib"}
                assert not refused, f"{path.name}:{node.lineno} uses {name}"
