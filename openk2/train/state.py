"""What a run must save to go on bit for bit: weights, optimizer, cursor. Nothing else moves between steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from openk2.model.model import Model
from openk2.optim.muonclip import MuonClip
from openk2.parallel.placement import part_like, whole
from openk2.protocols import Placement


def pack(model: Model, optimizer: MuonClip, cursor: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's content, whole on every process. Buffers (the router biases) are part of the model's state."""
    states = {
        spec.name: {
            name: part if part.ndim == 0 else optimizer.placement.gather(part, spec.parameter)
            for name, part in optimizer.state[spec.parameter].items()
        }
        for spec in optimizer.specs
        if spec.parameter in optimizer.state
    }
    return {"model": whole_state(model), "optimizer": states, "cursor": cursor}


def whole_state(model: Model) -> dict[str, Tensor]:
    """The model's state with sharded parameters brought together."""
    return {name: whole(tensor) for name, tensor in model.state_dict().items()}


def unpack(state: dict[str, Any], model: Model, optimizer: MuonClip) -> dict[str, Any]:
    """Put a checkpoint back; returns the cursor. Names must match exactly."""
    _load(model, state["model"], optimizer.placement)
    unknown = set(state["optimizer"]) - {spec.name for spec in optimizer.specs}
    if unknown:
        raise ValueError(
            f"checkpoint: saw optimizer state of {sorted(unknown)[0]!r}, expected names of the model's own"
        )
    for spec in optimizer.specs:
        if spec.name in state["optimizer"]:
            optimizer.state[spec.parameter] = {
                name: part_like(tensor, spec.parameter, optimizer.placement)
                for name, tensor in state["optimizer"][spec.name].items()
            }
    cursor: dict[str, Any] = state["cursor"]
    return cursor


def _load(model: Model, state: dict[str, Tensor], placement: Placement) -> None:
    """`load_state_dict`, each process taking its part."""
    held = model.state_dict(keep_vars=True)
    if {name: tensor.shape for name, tensor in state.items()} != {name: tensor.shape for name, tensor in held.items()}:
        model.load_state_dict(state)  # which says what does not fit
    for name, tensor in held.items():
        placement.put(state[name], tensor)
