"""Prompt folders and quick settings for test runs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openk2.evaluate.testrun import RunSettings
from openk2.observe.console import Console


@pytest.fixture()
def prompts(tmp_path: Path) -> Callable[..., Path]:
    """`prompts(one={...}, two={...})` writes a folder of prompts, all of category "test" unless they say so."""

    def write(**given: dict[str, Any]) -> Path:
        folder = tmp_path / "prompts"
        folder.mkdir(exist_ok=True)
        for name, prompt in given.items():
            (folder / f"{name}.json").write_text(json.dumps({"category": "test", **prompt}), encoding="utf-8")
        return folder

    return write


@pytest.fixture()
def quick() -> Callable[..., RunSettings]:
    """Settings whose pauses are short."""
    return lambda **given: RunSettings(**{"timeout": 20.0, "backoff": 0.01, "attempts": 3, **given})


@pytest.fixture()
def console() -> Console:
    """One whose words can be read from `console.stream`."""
    return Console(stream=io.StringIO(), results=io.StringIO())
