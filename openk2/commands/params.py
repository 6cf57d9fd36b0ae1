"""`openk2 params` and `openk2 audit-optimizer`: the model built on the meta device, counted and audited.

The planner counts by formula, the model by its own tensors; both must agree.
"""

from __future__ import annotations

import json
from math import prod
from typing import Any

import torch

from openk2.config import MODEL_PRESETS, ModelConfig, PretrainConfig
from openk2.config.overrides import nearest_name
from openk2.model.model import Model
from openk2.optim.audit import audit, totals
from openk2.optim.muonclip import MuonClip
from openk2.plan.cache import plan_cache
from openk2.plan.flops import plan_flops
from openk2.plan.parameters import plan_parameters


def build_on_meta(config: ModelConfig) -> Model:
    """The model with shapes and no storage: 1T parameters in seconds."""
    with torch.device("meta"):
        return Model(config)


def count(preset: str, context: int) -> dict[str, Any]:
    """Figures of a preset. Raises ValueError for an unknown one."""
    if preset not in MODEL_PRESETS:
        hint = nearest_name(preset, list(MODEL_PRESETS))
        raise ValueError(f"params: saw {preset!r}, expected one of {', '.join(MODEL_PRESETS)}{hint}")
    config = MODEL_PRESETS[preset]
    model = build_on_meta(config)
    built = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    parameters, flops, cache = plan_parameters(config), plan_flops(config, context=context), plan_cache(config)
    if built != parameters.total:
        raise AssertionError(f"{preset}: the model has {built:,} parameters, the planner counts {parameters.total:,}")
    return {
        "preset": preset,
        "total": built,
        "router_biases": sum(buffer.numel() for buffer in model.buffers()),
        "active": parameters.active,
        "active_with_head": parameters.active_with_head,
        "active_without_embedding_and_head": parameters.active_without_tables,
        "context": context,
        "flops_per_token": flops.forward,
        "flops_per_token_dense_of_same_total": flops.dense_forward,
        "dense_over_sparse": flops.dense_ratio,
        "training_flops_per_token": flops.training,
        "cache_bytes_per_token": cache.bytes_per_token,
        "cache_ratios": [
            {"stored": ratio.stored, "against": ratio.against, "ratio": ratio.ratio} for ratio in cache.ratios
        ],
    }


def describe(figures: dict[str, Any]) -> str:
    """The same, to be read."""
    lines = [
        f"{figures['preset']}: {figures['total']:,} parameters, {figures['router_biases']:,} router biases among them",
        f"active per token: {figures['active']:,} ({figures['active_with_head']:,} without the embedding)",
        f"forward at {figures['context']:,} tokens: {figures['flops_per_token'] / 1e9:.2f} GFLOPs a token, "
        f"{figures['dense_over_sparse']:.1f}x less than a dense model of the same total",
        f"cache: {figures['cache_bytes_per_token']:,} bytes a token in bf16",
    ]
    lines += [f"  {r['stored']}: {r['ratio']:.1f}x below {r['against']}" for r in figures["cache_ratios"]]
    return "\n".join(lines)


def audit_table(config: PretrainConfig, *, as_json: bool) -> str:
    """Parameter -> optimizer -> logical matrices -> scale, and the totals."""
    model = build_on_meta(config.model)
    optimizer = MuonClip.from_config(
        model.parameter_specs(split_heads=config.optim.muon_split), model.qk_groups(), config.optim
    )
    rows = audit(optimizer.specs, config.optim.update_rms)
    found = totals(rows)
    if as_json:
        listed = [
            {
                "name": r.name,
                "shape": r.shape,
                "route": r.route,
                "role": r.role,
                "matrices": r.matrices,
                "scale": r.scale,
            }
            for r in rows
        ]
        return json.dumps({"rows": listed, "totals": found}, indent=2)
    width = max(len(row.name) for row in rows)
    lines = [f"{'parameter':<{width}}  {'shape':<18} {'optimizer':<9} {'role':<10} {'matrices':<22} scale"]
    for row in rows:
        matrices = "" if row.matrices is None else "{} x [{}, {}]".format(*row.matrices)
        scale = "" if row.scale is None else f"{row.scale:.3f}"
        shape = "x".join(map(str, row.shape))
        lines.append(f"{row.name:<{width}}  {shape:<18} {row.route:<9} {row.role:<10} {matrices:<22} {scale}")
    share = found["muon"] / sum(prod(row.shape) for row in rows)
    lines.append(f"Muon: {found['muon']:,} parameters ({share:.1%}); AdamW: {found['adamw']:,}")
    return "\n".join(lines)
