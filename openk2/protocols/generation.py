"""What samples and scores, what constrains it, and what turns messages into tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

# An OpenAI-format chat message or tool declaration, as JSON would hold it.
Message = dict[str, Any]
ToolSpec = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. `temperature` 0 is greedy. Sequence i draws from the stream (seed, i).

    Tokens are left out that are not among the `top_k` likeliest (0: all are), below `min_p` times the likeliest, or
    beyond the smallest set whose mass reaches `top_p`; all three look at the tempered probabilities. Penalties change
    the logits of tokens that stand in the continuation: `presence_penalty` once, `frequency_penalty` for each time
    (OpenAI's rule); `repetition_penalty` divides positive and multiplies negative ones, of the prompt's tokens too
    (CTRL, arXiv 1909.05858). `top_log_probs` alternatives are reported with each token.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    top_log_probs: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled continuation.

    `ids` holds the stop token if one was sampled; `logprobs[t]` is the
    log-probability of `ids[t]` under the sampling model at temperature 1;
    `experts[t, layer, k]` are the experts chosen when `ids[t]` was predicted
    (None where the engine was not asked for them).
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str  # "stop" | "length"
    experts: np.ndarray | None = None


class Constraint(Protocol):
    """What one sequence may be, token by token, within a number of tokens that was said when it was made."""

    hopeless: bool  # nothing legal fits; no token may be drawn

    @property
    def done(self) -> bool:
        """It is whole; no further token may be drawn."""
        ...

    def mask(self) -> np.ndarray:
        """Bool [V]: the tokens that may come next."""
        ...

    def accept(self, token: int) -> int:
        """Take a token that the mask allows; returns the one that stands, which may be another."""
        ...


class Grammar(Protocol):
    """What sequences of one kind may be (`openk2.chat.grammar.TurnGrammar`)."""

    def start(self, budget: int) -> Constraint:
        """A sequence of at most `budget` tokens."""
        ...


class Generate(Protocol):
    """Batched generation: one completion per prompt, in order."""

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        on_token: Callable[[int, int], None] | None = None,
        grammars: Sequence[Grammar | None] | None = None,
    ) -> list[Completion]:
        """`on_token(index, token_id)` is called as each token of sequence `index` is sampled; of `grammars`, one a
        prompt, None lets a sequence be anything. Where nothing legal fits, a completion is empty and ends by length."""
        ...


class Score(Protocol):
    """Log-probabilities of given text."""

    def __call__(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """For each sequence of n ids, the n-1 natural log-probabilities of ids[1:]."""
        ...


class Sampler(Generate, Protocol):
    """A `Generate` whose weights RL renews before each step, in this process or at an endpoint."""

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]: ...

    def sync(self, model: Any) -> str:
        """Take over the policy's weights in place; returns their hash, which the copy was compared with."""
        ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids and, beside each, whether the loss counts it."""

    ids: tuple[int, ...]
    mask: tuple[bool, ...]


class ChatCodec(Protocol):
    """Messages and tools to tokens, and back; `openk2.chat.Codec` is the real one."""

    @property
    def stop_ids(self) -> tuple[int, ...]: ...

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> Encoded:
        """A whole dialogue, the tool declaration and system turn included."""
        ...

    def encode_turns(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> Encoded:
        """Further turns to append to a dialogue already encoded: no declaration, no default system turn."""
        ...

    def decode_message(self, ids: Sequence[int]) -> Message:
        """The assistant message that these sampled ids spell: content and tool_calls."""
        ...
