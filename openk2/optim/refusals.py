"""What MuonClip refuses when it is made: settings, declarations and QK groups that no step could be made with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from openk2.config.run import RULES
from openk2.protocols import ParameterSpec, QKGroup


def refuse_unfit(spec: ParameterSpec) -> None:
    """ValueError for a Muon parameter that cannot be seen as the matrices declared for it."""
    shape = tuple(spec.parameter.shape)
    view: tuple[int, ...] = spec.matrices or ()
    fits = len(view) == 3 and all(isinstance(size, int) and size > 0 for size in view)
    count, rows, columns = view if fits else (0, 0, 0)
    whole_rows = columns in (math.prod(shape[dim:]) for dim in range(1, len(shape)))  # a row of a matrix is never cut
    if count * rows * columns != math.prod(shape) or not whole_rows or not math.prod(shape):
        raise ValueError(f"MuonClip: {spec.name}: saw matrices {spec.matrices}, expected a view of shape {shape}")
    if spec.parameter.device.type != "meta" and not spec.parameter.is_contiguous():
        raise ValueError(
            f"MuonClip: {spec.name}: saw a parameter that is not contiguous in memory, expected one that is; "
            "give it contiguous() data, or AdamW"
        )


def refuse_unknown(specs: Sequence[Any], qk_groups: Sequence[QKGroup]) -> None:
    """ValueError for what is no declaration, for parameters declared twice, and for clips of anything else."""
    for spec in specs:
        if not isinstance(spec, ParameterSpec):
            raise ValueError(
                f"MuonClip: saw {type(spec).__name__}, expected ParameterSpec; for a plain torch model use "
                "MuonClip.from_module(model)"
            )
        if spec.route not in ("muon", "adamw"):
            raise ValueError(f"MuonClip: {spec.name}: saw route {spec.route!r}, expected 'muon' or 'adamw'")
        if spec.parameter.is_complex():
            raise ValueError(f"MuonClip: {spec.name}: saw complex numbers, expected real ones; see torch.view_as_real")
    known = {id(spec.parameter) for spec in specs}
    if len(known) < len(specs):
        raise ValueError(f"MuonClip: saw {len(specs)} specs of {len(known)} parameters, expected one of each")
    clipped: set[tuple[int, int]] = set()  # a weight's id and a row of each of its heads
    for group in qk_groups:
        if group.num_heads != qk_groups[0].num_heads:
            raise ValueError(
                f"MuonClip: {group.name}: saw {group.num_heads} heads, expected {qk_groups[0].num_heads} as in "
                f"{qk_groups[0].name}: maxima come as [layers, heads]"
            )
        for rows in group.rows:
            if id(rows.weight) not in known:
                raise ValueError(f"MuonClip: {group.name}: saw a weight that no spec declares, expected one of theirs")
            ours = {(id(rows.weight), row) for row in range(rows.first, rows.last)}
            if ours & clipped:
                raise ValueError(f"MuonClip: {group.name}: saw rows that are clipped twice, expected each row once")
            clipped |= ours


def refuse_settings(**settings: Any) -> None:
    """ValueError for a number that no step could be made with. A schedule may begin with a rate of 0."""
    rules = {
        "at least 0": ("lr", "weight_decay", "adam_lr_scale", "adam_grad_clip"),
        "above 0": ("update_rms", "adam_eps", "qk_clip_tau"),
        "at least 0 and below 1": ("momentum", "adam_beta1", "adam_beta2"),
        "at least 1": ("ns_steps",),
    }
    for rule, names in rules.items():
        for name in names:
            value = settings[name]
            if value is None and name == "qk_clip_tau":
                continue
            kinds = int if name == "ns_steps" else int | float
            number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not RULES[rule](value):
                kind = "a whole number" if name == "ns_steps" else "a number"
                raise ValueError(f"MuonClip: {name}: saw {value!r}, expected {kind} {rule}")
    if not isinstance(settings["ns_dtype"], torch.dtype) or not settings["ns_dtype"].is_floating_point:
        raise ValueError(f"MuonClip: ns_dtype: saw {settings['ns_dtype']!r}, expected one such as torch.bfloat16")
