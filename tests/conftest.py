"""What all tests share: where reference files outside the project lie, how hypothesis runs, and a browser."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Test files may have equal names (import-mode importlib); helper modules beside them are imported by their own name.
sys.path += sorted({str(path.parent) for path in Path(__file__).parent.rglob("*.py")} - set(sys.path))

# Shared machines stall for seconds at a time: slowness is no finding here, and every run draws the same examples.
settings.register_profile("openk2", deadline=None, derandomize=True)
settings.load_profile("openk2")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of reference files that are no part of the project (K2's tokenizer, golden renders, ...)."""
    folder = os.environ.get("OPENK2_ASSETS")
    if not folder:
        pytest.skip("OPENK2_ASSETS is not set: it names the folder of reference files")
    return Path(folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium, driven by playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        driven = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
        )
        yield driven
        driven.close()
