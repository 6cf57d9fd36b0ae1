"""A tokenizer of bytes, and a small folder of text, for tests of the data layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

WORDS = (
    "river stone lantern winter copper meadow thread harbour signal garden mirror timber window orchard "
    "engine marble candle pepper saddle bridge feather kettle ribbon anchor valley hammer basket planet"
).split()


class ByteTokenizer:
    """One token a byte, from id 2; 0 and 1 are BOS and EOS."""

    bos_id, eos_id, vocab_size = 0, 1, 258

    def __init__(self, name: str = "bytes") -> None:
        self.name = name

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[byte + 2 for byte in text.encode()] for text in texts]

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id - 2])

    def digest(self) -> str:
        return self.name


def prose(seed: int, words: int = 200) -> str:
    """Random words in lines: two seeds share almost no 5-word shingle."""
    drawn = np.random.default_rng(seed).choice(WORDS, size=words)
    return "\n".join(" ".join(drawn[start : start + 10]) for start in range(0, words, 10)) + "\n"


@pytest.fixture
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """Two domains of twelve files each."""
    folder = tmp_path / "texts"
    for number, domain in enumerate(("letters", "notes")):
        (folder / domain).mkdir(parents=True)
        for index in range(12):
            (folder / domain / f"{index}.txt").write_text(prose(100 * number + index, 80 + 20 * index))
    return folder
