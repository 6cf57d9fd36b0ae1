"""Rollouts, dialogues and samplers whose every figure is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from small_checkpoint import small_codec, small_model
from tool_dialogues import GOLD_TASKS, gold_script, play

from openk2.chat.codec import Codec
from openk2.config import RLConfig
from openk2.data.dialogues import Dialogue
from openk2.environments import declarations
from openk2.posttrain.rl.loop import Trainer
from openk2.protocols import Completion, Outcome, Rollout, SamplingParams, Task, Turn

PASSED = Outcome(True, True, True, True)
FAILED = Outcome(True, True, False, True, failure="wrong_answer")
CODEC = small_codec()


def talk_task(number: int, answer: str = "yes") -> Task:
    """No tools: the answer must hold a word."""
    return Task(f"talk-{number}", "plain", "", (), (Turn(f"Number {number}?", (), answer),))


def rollout(answer: str, success: bool, *, truncated: bool = False) -> Rollout:
    messages = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": answer}]
    ids = [*CODEC.tokenizer.encode(answer), CODEC.tokenizer.im_end_id]
    outcome = PASSED if success else FAILED
    return Rollout(talk_task(0), ids, [True] * len(ids), [-1.0] * len(ids), messages, outcome, truncated)


def dialogue(task: Task) -> Dialogue:
    return Dialogue(play(task, gold_script(task)), declarations(task.tools), "tool", task, False)


def talk_dialogues(count: int) -> list[Dialogue]:
    return [dialogue(talk_task(number)) for number in range(count)]


class FixedSampler:
    """Answers `text(k)` to the k-th prompt of each call, one token a byte; scores as `margin` says.

    `margin` gets the critic's prompt as text and returns log p("A") - log p("B").
    """

    def __init__(
        self, text: Callable[[int], str], *, codec: Codec = CODEC, margin: Callable[[str], float] = lambda _: 0.0
    ) -> None:
        self.text, self.codec, self.margin = text, codec, margin
        self.synced, self.sampled = 0, list[tuple[int, ...]]()
        self.temperatures, self.asked = list[float](), list[str]()

    def sync(self, model: Any) -> None:
        self.synced += 1

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        self.temperatures.append(params.temperature)
        return [self._complete(index, params) for index in range(len(prompts))]

    def _complete(self, index: int, params: SamplingParams) -> Completion:
        tokenizer = self.codec.tokenizer
        ids = [token for letter in self.text(index) for token in tokenizer.encode(letter)] + [tokenizer.im_end_id]
        cut = tuple(ids[: params.max_new_tokens])
        self.sampled.append(cut)
        return Completion(cut, (-0.5,) * len(cut), "stop" if len(cut) == len(ids) else "length")

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        letter = {self.codec.tokenizer.encode(name)[0]: name for name in ("A", "B")}
        found = []
        for ids in sequences:
            text = self.codec.tokenizer.decode(ids[:-1])
            self.asked.append(text)
            value = self.margin(text) if letter[ids[-1]] == "A" else 0.0
            found.append(np.array([*[-9.0] * (len(ids) - 2), value]))
        return found


def trainer(sampler: Any, *, tasks: int = 6, **settings: Any) -> Trainer:
    values: dict[str, Any] = {
        "prompts_per_step": 2, "group_size": 4, "token_budget": 32, "steps": 3, "ptx_weight": 0.0, "critic_weight": 0.0,
    }  # fmt: skip
    return Trainer(RLConfig(**{**values, **settings}), small_model(), CODEC, talk_dialogues(tasks), sampler)


CALCULATOR_TASK = next(task for task in GOLD_TASKS if task.domain == "calculator")
