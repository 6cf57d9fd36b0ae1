"""The tokenizers that the chat tests share, and the folder's helper module made importable."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from openk2.chat import Codec, Tokenizer

sys.path.insert(0, str(Path(__file__).parent))

TEXT = Path(json.decoder.__file__).read_text(encoding="utf-8") + "user assistant system tool 你好，世界 déjà vu "


@pytest.fixture(scope="session")
def k2_folder(assets: Path) -> Path:
    """K2's published tokenizer and golden files; they are no part of the project."""
    if not (assets / "k2" / "tiktoken.model").is_file():
        pytest.skip("OPENK2_ASSETS has no k2/tiktoken.model")
    return assets / "k2"


@pytest.fixture(scope="session")
def k2_tokenizer(k2_folder: Path) -> Tokenizer:
    return Tokenizer.load(k2_folder)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A small trained vocabulary with all of its rows in use."""
    return Tokenizer.train([TEXT], 1024)


@pytest.fixture(scope="session")
def codec(tokenizer: Tokenizer) -> Codec:
    return Codec(tokenizer)
