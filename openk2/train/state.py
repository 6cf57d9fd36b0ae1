"""What a run must save to go on bit for bit: weights, optimizer, cursor. Nothing else moves between steps."""

from __future__ import annotations

from typing import Any

from openk2.model.model import Model
from openk2.optim.muonclip import MuonClip


def pack(model: Model, optimizer: MuonClip, cursor: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's content. Buffers (the router biases) are part of the model's state."""
    states = {
        spec.name: dict(optimizer.state[spec.parameter])
        for spec in optimizer.specs
        if spec.parameter in optimizer.state
    }
    return {"model": model.state_dict(), "optimizer": states, "cursor": cursor}


def unpack(state: dict[str, Any], model: Model, optimizer: MuonClip) -> dict[str, Any]:
    """Put a checkpoint back; returns the cursor. Names must match exactly."""
    model.load_state_dict(state["model"])
    unknown = set(state["optimizer"]) - {spec.name for spec in optimizer.specs}
    if unknown:
        raise ValueError(
            f"checkpoint: saw optimizer state of {sorted(unknown)[0]!r}, expected names of the model's own"
        )
    for spec in optimizer.specs:
        if spec.name in state["optimizer"]:
            optimizer.state[spec.parameter] = dict(state["optimizer"][spec.name])
    cursor: dict[str, Any] = state["cursor"]
    return cursor
