"""What all layers of one forward pass are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from openk2.model.layout import Layout
from openk2.ops.attention import Tiling
from openk2.ops.attention_backends import Backend
from openk2.ops.recompute import Recompute


@dataclass(frozen=True)
class ForwardContext:
    """`turns` complex64 [B, T, r/2], what each token's rotary pairs are multiplied with; `tiling` is of the layout's
    documents and `prepared` what `attention` made of it; above `tau` a head's largest score is computed exactly;
    `again` gives cheap results back."""

    layout: Layout
    turns: Tensor
    tiling: Tiling
    attention: Backend
    prepared: Any
    tau: float | None
    again: Recompute
