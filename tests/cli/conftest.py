"""A small checkpoint, and the commands run in this process without compiling kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_checkpoint import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small") / "instruct")


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("openk2.train.session", "openk2.engine.engine"):
        monkeypatch.setattr(f"{place}.fusion_available", lambda: (False, "a test"))
