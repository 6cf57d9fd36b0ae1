"""Weights as an engine stores them, their hash, and whether they are those of its model.

Invariant: what routers hold is fp32, everything else is in the compute dtype; `model_like` and `engine_weights` agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from openk2.model.model import Model
from openk2.model.moe import Router


def model_like(model: Model) -> Model:
    """A model of the same shape that stores its tensors so; what they hold is still to be loaded."""
    stored = Model(model.config, compute_dtype=model.compute_dtype).to(model.compute_dtype).eval()
    for _, router in _routers(stored):
        router.float()
    return stored


def engine_weights(model: Model) -> dict[str, Tensor]:
    """`model`'s tensors as an engine stores them: in the compute dtype, what belongs to routers in fp32."""
    routers = {f"{name}.{tensor}" for name, module in _routers(model) for tensor in module.state_dict()}
    return {
        name: value.detach().to(torch.float32 if name in routers else model.compute_dtype)
        for name, value in model.state_dict().items()
    }


def check_alike(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Raises `ValueError` where names, dtypes or shapes differ."""
    other = [name for name in own.keys() | weights.keys() if _kind(own.get(name)) != _kind(weights.get(name))]
    if other:
        name = min(other)
        raise ValueError(
            f"engine: saw {name} as {_kind(weights.get(name))}, expected {_kind(own.get(name))}; the weights are those "
            "of another model"
        )


def _kind(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}".removeprefix("torch.")


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors' names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _routers(model: Model) -> Iterator[tuple[str, Router]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Router))
