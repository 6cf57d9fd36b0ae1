"""How a model's parameters are optimised and clipped, and where they lie. Tensors stand as `Any`: no torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")


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
