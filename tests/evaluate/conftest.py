"""Scripted policies: what generates and scores here is known exactly, so every expected figure is too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openk2.chat import Codec, Tokenizer
from openk2.evaluate.records import EvalSettings, Result
from openk2.protocols import Completion, Generate, Grammar, SamplingParams, Score

VOCAB = 512  # 256 bytes and K2's 256 control tokens: one token a byte


class Scripted:
    """A `Generate` whose answer to a prompt is `answer(prompt text)`, ended by a stop token."""

    def __init__(self, codec: Codec, answer: Callable[[str], str]) -> None:
        self.codec, self.answer, self.prompts = codec, answer, list[str]()

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        on_token: Callable[[int, int], None] | None = None,
        grammars: Sequence[Grammar | None] | None = None,
    ) -> list[Completion]:
        return [self._complete(prompt, params) for prompt in prompts]

    def _complete(self, prompt: Sequence[int], params: SamplingParams) -> Completion:
        text = self.codec.tokenizer.decode(prompt)
        self.prompts.append(text)
        ids = [*self.codec.tokenizer.encode(self.answer(text)), params.stop_ids[0]]
        cut = tuple(ids[: params.max_new_tokens])
        return Completion(cut, (0.0,) * len(cut), "stop" if len(cut) == len(ids) else "length")


class UniformScore:
    """Every token as probable as every other; remembers how many it was asked for."""

    def __init__(self, vocab_size: int = VOCAB) -> None:
        self.vocab_size, self.sequences = vocab_size, list[tuple[int, ...]]()

    def __call__(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        self.sequences += [tuple(sequence) for sequence in sequences]
        return [np.full(len(sequence) - 1, -math.log(self.vocab_size)) for sequence in sequences]


def refuse(*args: object, **kwargs: object) -> Any:
    raise AssertionError("a task that scores must not generate, and one that generates must not score")


def in_bounds(done: int, total: int) -> None:
    assert 0 < done <= total


@pytest.fixture(scope="session")
def codec() -> Codec:
    return Codec(Tokenizer.train([], VOCAB))


@pytest.fixture(scope="session")
def uniform() -> Callable[[int], UniformScore]:
    return UniformScore


@pytest.fixture(scope="session")
def scripted(codec: Codec) -> Callable[[Callable[[str], str]], Scripted]:
    return lambda answer: Scripted(codec, answer)


@pytest.fixture(scope="session")
def run(codec: Codec) -> Callable[..., Result]:
    """`run(task, items, generate=..., score=..., **settings)`; what is not given is refused."""

    def run_task(
        task: Any,
        items: Sequence[Any],
        *,
        generate: Generate = refuse,
        score: Score = refuse,
        codec: Codec = codec,
        **settings: Any,
    ) -> Result:
        return task.run(items, generate, score, codec, EvalSettings(**settings), in_bounds)

    return run_task


@pytest.fixture(scope="session")
def datasets(assets: Path) -> Path:
    """The real data sets, where they are."""
    folder = assets / "datasets"
    if not folder.is_dir():
        pytest.skip("OPENK2_ASSETS names a folder without datasets/")
    return folder
