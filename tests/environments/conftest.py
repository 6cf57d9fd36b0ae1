"""A small trained codec, and the folder's helper module made importable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tool_dialogues import GOLD_TASKS

from openk2.chat.codec import Codec
from openk2.chat.tokenizer import Tokenizer
from openk2.environments import TOOL_NAMES, declarations


@pytest.fixture(scope="session")
def codec() -> Codec:
    texts = [turn.user for task in GOLD_TASKS for turn in task.turns] + [str(declarations(TOOL_NAMES))]
    return Codec(Tokenizer.train(texts * 4, 640))
