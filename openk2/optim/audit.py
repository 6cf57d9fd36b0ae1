"""Which parameter goes to which optimizer, as which matrices, at which scale.

"Muon" that silently is not Muon is the commonest bug of such stacks; this
table is what a run prints and what `openk2 audit-optimizer` shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from openk2.optim.muon import update_scale
from openk2.protocols import ParameterSpec


@dataclass(frozen=True)
class AuditRow:
    """One parameter. `scale` is the factor on the orthogonalised update (None for AdamW)."""

    name: str
    shape: tuple[int, ...]
    route: str
    role: str
    matrices: tuple[int, int, int] | None
    scale: float | None


def audit(specs: Iterable[ParameterSpec], update_rms: float) -> list[AuditRow]:
    """The table, in the model's order. A parameter whose matrices do not cover it is a ValueError."""
    rows = []
    for spec in specs:
        shape = tuple(spec.parameter.shape)
        scale = None
        if spec.route == "muon":
            if spec.matrices is None or prod(spec.matrices) != prod(shape):
                raise ValueError(f"{spec.name}: saw matrices {spec.matrices}, expected a view of shape {shape}")
            scale = update_scale(*spec.matrices[1:], update_rms)
        rows.append(AuditRow(spec.name, shape, spec.route, spec.role, spec.matrices, scale))
    return rows


def totals(rows: Iterable[AuditRow]) -> dict[str, int]:
    """Parameters per route."""
    found = {"muon": 0, "adamw": 0}
    for row in rows:
        found[row.route] += prod(row.shape)
    return found
