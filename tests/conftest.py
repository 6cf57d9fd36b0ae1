"""What all tests share: where reference files outside the project lie, and how hypothesis runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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
