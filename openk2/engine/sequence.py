"""One continuation on its way: what was asked for, what has been sampled, where it stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from typing import TypeVar

import numpy as np

from openk2.protocols import Completion, Constraint, Grammar, SamplingParams

Reply = TypeVar("Reply")


@dataclass(frozen=True)
class Request:
    """A prompt and how to go on from it.

    `stream` numbers the random stream among those of `params.seed`, so that what is drawn depends on nothing else.
    `on_token` is called as each token is taken, on the thread that steps the engine; where it returns true the
    sequence ends there, with "stop" (stop strings, a client that has seen enough).
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    stream: int = 0
    grammar: Grammar | None = None
    on_token: Callable[[Sequence], bool | None] | None = None


class Status(Enum):
    WAITING = auto()  # for cache blocks; preempted ones too
    RUNNING = auto()
    FINISHED = auto()


@dataclass(eq=False)
class Sequence:
    """A request that an engine has taken on. `finish_reason` is "" until it ends by "stop", "length", "cancelled" or
    "error".

    Its grammar and its `on_token` are others' code, asked for it alone: what they raise is kept as `error` and ends
    this sequence, no other.
    """

    request: Request
    limit: int  # tokens that may be sampled
    constraint: Constraint | None
    random: np.random.Generator  # of its stream
    status: Status = Status.WAITING
    finish_reason: str = ""
    tokens: list[int] = field(default_factory=list)  # prompt and sampled ids
    log_probs: list[float] = field(default_factory=list)  # of ids, at temperature 1, whatever a grammar allows
    top: list[list[tuple[int, float]]] = field(default_factory=list)  # params.top_log_probs likeliest tokens and theirs
    experts: list[np.ndarray] = field(default_factory=list)  # int [L_moe, K], chosen where each of ids was predicted
    blocks: list[int] = field(default_factory=list)  # of the cache, in order
    num_computed: int = 0  # tokens whose latents the blocks hold
    num_cached: int = 0  # prompt tokens that were found in the prefix tree
    num_preempted: int = 0
    error: Exception | None = None

    @cached_property
    def prompt_ids(self) -> np.ndarray:
        """The prompt's ids, each once."""
        return np.unique(np.array(self.request.prompt, dtype=np.int64))

    @property
    def ids(self) -> list[int]:
        """What has been sampled."""
        return self.tokens[len(self.request.prompt) :]

    @property
    def num_sampled(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def num_pending(self) -> int:
        """Tokens that are to be read before the next one can be sampled."""
        return len(self.tokens) - self.num_computed

    def allowed(self) -> np.ndarray | None:
        """Bool [V]: the tokens that its grammar lets come next, at least one; None: all."""
        mask = None if self.constraint is None else self._ask(self.constraint.mask, None)
        if mask is not None and not mask.any():
            self.fail(RuntimeError("engine: saw a grammar that allows no token, expected one or an end"))
            return None
        return mask

    def standing(self, token: int) -> int:
        """The token that its grammar puts in the place of the one that was drawn."""
        constraint = self.constraint
        return token if constraint is None else self._ask(lambda: constraint.accept(token), token)

    def is_whole(self) -> bool:
        """Whether its grammar allows no further token."""
        constraint = self.constraint
        return constraint is not None and self._ask(lambda: constraint.done, False)

    def tell(self) -> bool:
        """Show the newest token; true where no further one is wanted."""
        on_token = self.request.on_token
        return on_token is not None and self._ask(lambda: bool(on_token(self)), False)

    def fail(self, error: Exception) -> None:
        """End by `error` with the token that is being taken; the first one stays."""
        self.error = self.error or error

    def _ask(self, question: Callable[[], Reply], otherwise: Reply) -> Reply:
        if self.error is None:
            try:
                return question()
            except Exception as error:
                self.fail(error)
        return otherwise

    def completion(self) -> Completion:
        experts = np.stack(self.experts) if self.experts else None
        return Completion(tuple(self.ids), tuple(self.log_probs), self.finish_reason, experts)
