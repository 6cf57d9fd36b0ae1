"""What the layers and stages hand each other: small frozen records and callables.

A stage never imports another stage, and never asks which engine stands behind
a callable. It is given a `Generate` or a `Score` by `cli.py` or `speedrun.py`.
No torch here: token ids are plain integers, arrays are numpy's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np

# An OpenAI-format chat message or tool declaration, as JSON would hold it.
Message = dict[str, Any]
ToolSpec = dict[str, Any]

Result = TypeVar("Result")


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
    """A `Generate` in this process whose weights RL renews before each step."""

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


class Environment(Protocol):
    """Tools with a state, opened for one dialogue and closed after it."""

    def declarations(self) -> list[ToolSpec]: ...

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run one tool. Raises `ToolError` for an undeclared tool or bad arguments."""
        ...

    def close(self) -> None: ...


class ToolError(Exception):
    """A tool refused its arguments; the text is what the model is shown."""


class EnvironmentFailure(Exception):
    """The environment itself broke, through no fault of the model's: such a dialogue is dropped, never scored."""


@dataclass(frozen=True)
class ExpectedCall:
    """A call that the task needs: the tool and its arguments after parsing."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Turn:
    """One user turn: what is said, the calls it needs (none for plain talk) and what the answer must state."""

    user: str
    calls: tuple[ExpectedCall, ...]
    answer: str


@dataclass(frozen=True)
class Task:
    """A dialogue to be carried out with tools, and how to tell whether it was.

    `tools` names the tools on offer, `setup` is the state they start from,
    `rubric` the success criteria a judge reads, `domain` the main tool.
    """

    id: str
    domain: str
    system: str
    tools: tuple[str, ...]
    turns: tuple[Turn, ...]
    setup: Mapping[str, Any] = field(default_factory=dict)
    rubric: tuple[str, ...] = ()


def task_to_dict(task: Task) -> dict[str, Any]:
    """The task as JSON holds it; `task_from_dict` reads it back."""
    turns = [
        {
            "user": turn.user,
            "calls": [{"name": call.name, "arguments": dict(call.arguments)} for call in turn.calls],
            "answer": turn.answer,
        }
        for turn in task.turns
    ]
    return {
        "id": task.id,
        "domain": task.domain,
        "system": task.system,
        "tools": list(task.tools),
        "turns": turns,
        "setup": dict(task.setup),
        "rubric": list(task.rubric),
    }


def task_from_dict(value: Mapping[str, Any]) -> Task:
    """Read a task. `system`, `setup` and `rubric` may be absent; an unknown or missing key is a ValueError."""
    _expect_keys("task", value, {"id": str, "domain": str, "tools": list, "turns": list}, _TASK_OPTIONAL)
    turns = []
    for index, turn in enumerate(value["turns"]):
        where = f"task {value['id']}: turns[{index}]"
        _expect_keys(where, turn, {"user": str, "calls": list, "answer": str}, {})
        for call in turn["calls"]:
            _expect_keys(f"{where}.calls", call, {"name": str, "arguments": dict}, {})
        calls = tuple(ExpectedCall(call["name"], call["arguments"]) for call in turn["calls"])
        turns.append(Turn(turn["user"], calls, turn["answer"]))
    if not turns:
        raise ValueError(f"task {value['id']}: saw no turns, expected at least one")
    return Task(
        id=value["id"],
        domain=value["domain"],
        system=value.get("system", ""),
        tools=tuple(value["tools"]),
        turns=tuple(turns),
        setup=value.get("setup", {}),
        rubric=tuple(value.get("rubric", ())),
    )


_TASK_OPTIONAL: dict[str, type] = {"system": str, "setup": dict, "rubric": list}


def _expect_keys(where: str, value: Any, required: Mapping[str, type], optional: Mapping[str, type]) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: saw {value!r:.40}, expected an object with {', '.join(required)}")
    for key in value:
        if key not in required and key not in optional:
            raise ValueError(f"{where}: saw the key {key!r}, expected only {', '.join((*required, *optional))}")
    for key, kind in (*required.items(), *optional.items()):
        if key in required and key not in value:
            raise ValueError(f"{where}: saw no {key!r}, expected {', '.join(required)}")
        if key in value and not isinstance(value[key], kind):
            raise ValueError(f"{where}.{key}: saw {value[key]!r:.40}, expected a JSON {_JSON_NAMES[kind]}")


_JSON_NAMES: dict[type, str] = {str: "string", list: "array", dict: "object"}


@dataclass(frozen=True)
class Outcome:
    """What grading found, each part by itself; `success` is all of them."""

    tool_correct: bool
    arguments_valid: bool
    answer_correct: bool
    finished: bool
    failure: str = ""  # "" or a short typed reason: "no_call", "wrong_tool", "bad_json", "schema", ...

    @property
    def success(self) -> bool:
        return self.tool_correct and self.arguments_valid and self.answer_correct and self.finished


@dataclass
class Rollout:
    """One dialogue as it was sampled, token for token.

    `sampled[t]` is true where the policy chose `ids[t]`; `logprobs[t]` is its
    log-probability then, and 0.0 elsewhere. Nothing here is ever re-tokenised.
    """

    task: Task
    ids: list[int]
    sampled: list[bool]
    logprobs: list[float]
    messages: list[Message]
    outcome: Outcome
    truncated: bool = False

    @property
    def num_sampled(self) -> int:
        return sum(self.sampled)


@dataclass(frozen=True)
class ParameterSpec:
    """How one parameter is optimised, declared by the model that owns it.

    `route` is "muon" or "adamw". `matrices` is the view (count, rows, columns)
    under which Muon sees the parameter: each of the `count` matrices is
    orthogonalised by itself (experts, gate and up projections). None for adamw.
    """

    name: str
    parameter: Any  # torch.nn.Parameter; not named so that this module needs no torch
    route: str
    # attention | mlp | experts | router | embedding | head | norm; found in a plain module also matrix | vector | other
    role: str
    matrices: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class QKRows:
    """Rows of one weight that QK-Clip scales by gamma ** `power`, head by head.

    `weight` is [H * per_head, in], its rows ordered by head; of each head's
    rows, `first` to `last` are scaled.
    """

    weight: Any
    per_head: int
    first: int
    last: int
    power: float


@dataclass(frozen=True)
class QKGroup:
    """One attention layer as QK-Clip sees it: whatever is not named in `rows` stays as it is."""

    name: str
    num_heads: int
    rows: tuple[QKRows, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.num_heads, int) or self.num_heads < 1:
            raise ValueError(f"{self.name}: saw num_heads {self.num_heads!r}, expected a whole number of at least 1")
        for rows in self.rows:
            if rows.weight.shape[0] != self.num_heads * rows.per_head:
                raise ValueError(
                    f"{self.name}: saw a weight of {rows.weight.shape[0]} rows, expected {self.num_heads} heads of "
                    f"{rows.per_head}"
                )
            if not 0 <= rows.first <= rows.last <= rows.per_head:
                raise ValueError(
                    f"{self.name}: saw rows {rows.first} to {rows.last} of a head that has {rows.per_head}"
                )

    @classmethod
    def latent(
        cls, name: str, query: Any, key_value: Any, *, num_heads: int, nope_dim: int, rope_dim: int, value_dim: int
    ) -> QKGroup:
        """Multi-head latent attention (K2 report, section 2.1): `query` [H * (nope + rope), in], `key_value`
        [H * (nope + value), latent]. The rotary key is shared by all heads, so the rotary query takes all of gamma."""
        width = nope_dim + rope_dim
        return cls(
            name,
            num_heads,
            (
                QKRows(query, width, 0, nope_dim, 0.5),
                QKRows(query, width, nope_dim, width, 1.0),
                QKRows(key_value, nope_dim + value_dim, 0, nope_dim, 0.5),
            ),
        )

    @classmethod
    def multi_head(cls, name: str, query: Any, key: Any, *, num_heads: int) -> QKGroup:
        """Plain attention, weights [H * d, in] each: half of the correction to either side."""
        if query.shape[0] != key.shape[0]:
            raise ValueError(
                f"{name}: saw {query.shape[0]} query rows and {key.shape[0]} key rows, expected as many of both; where "
                "heads share keys use QKGroup.shared_key"
            )
        per_head = _per_head(query, num_heads)
        return cls(name, num_heads, tuple(QKRows(w, per_head, 0, per_head, 0.5) for w in (query, key)))

    @classmethod
    def shared_key(cls, name: str, query: Any, *, num_heads: int) -> QKGroup:
        """Grouped or multi-query attention: heads share keys, so each head's query takes all of its gamma."""
        per_head = _per_head(query, num_heads)
        return cls(name, num_heads, (QKRows(query, per_head, 0, per_head, 1.0),))


def _per_head(weight: Any, num_heads: Any) -> int:
    """Rows of a head; for numbers of heads that cannot be, 0, which `QKGroup` refuses."""
    return int(weight.shape[0]) // num_heads if isinstance(num_heads, int) and num_heads > 0 else 0


class Placement(Protocol):
    """Which part of each parameter this process holds, and how whole matrices come together.

    A part is a run of elements that follow each other in the parameter, rows
    first: all of them, some or none. The processes' runs follow each other in
    the order of ranks. A run that begins and ends with a row may be shaped in
    rows, any other one is flat. The optimizer's maths is written for whole
    matrices; an optimizer that is given a placement runs the same maths on
    parameters that lie on several processes.
    """

    def local(self, parameter: Any) -> Any:
        """The part of it that lies here, sharing its memory; of a buffer, all of it."""
        ...

    def gradient(self, parameter: Any) -> Any | None:
        """The gradient of the part that lies here, shaped like it; None where the parameter has no gradient."""
        ...

    def first_element(self, parameter: Any) -> int:
        """The place in the whole parameter, seen flat, at which the local part begins."""
        ...

    def total(self, values: Any) -> Any:
        """Sums of each value [n] over the processes."""
        ...

    def is_cut(self, parameter: Any, shape: tuple[int, int]) -> bool:
        """Whether some process holds a part of one of its matrices of `shape` without the rest."""
        ...

    def through_whole(
        self,
        function: Callable[[Any], Any],
        parts: Sequence[Any],
        parameters: Sequence[Any],
        shape: tuple[int, int],
        dtype: Any,
    ) -> list[Any]:
        """`function` (stack [count, rows, columns] -> the same shape in `dtype`) of the matrices of cut parameters.

        `parts` are tensors like the local parts of `parameters`; returned is each part's share of the result.
        """
        ...

    def gather(self, part: Any, parameter: Any) -> Any:
        """The whole of what `part`, a tensor like the local part of `parameter`, is this process's part of."""
        ...

    def put(self, tensor: Any, parameter: Any) -> None:
        """Give a parameter or buffer the values of a whole tensor, of which every process takes its part."""
        ...

    def update(self, step: Callable[[], Result]) -> Result:
        """What `step` returns, which is run once the local gradients are those of the whole step and changes the local
        parts; afterwards forward passes see the change."""
        ...
