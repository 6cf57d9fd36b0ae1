"""A nested training state as JSON plus named tensors, and back.

Tensors and arrays go into one flat dict under their path in the tree; the
JSON holds everything else and a tagged reference where a tensor stood. Tags
are objects with one key that starts with "$"; a dict that JSON could not hold
as it is (keys that are not strings, or begin with "$") becomes a tagged list
of pairs. Invariant: what comes back has the same types, dtypes and bits.
Left out: every other type, which is refused by its path rather than guessed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def flatten_state(state: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """(JSON value, contiguous CPU tensors by path). Raises `ValueError` naming the path of an unsupported value."""
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()

    def store(tensor: Tensor, path: str) -> str:
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # Safetensors refuses tensors that share memory; tied values and views are written out each by itself.
        if tensor.numel() and storage in storages:
            tensor = tensor.clone()
            storage = tensor.untyped_storage().data_ptr()
        storages.add(storage)
        name = path if path not in tensors else f"{path}#{len(tensors)}"  # keys 1 and "1" have one path
        tensors[name] = tensor
        return name

    def encode(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            return {"$tensor": store(value, path)}
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return {"$array": store(torch.from_numpy(np.array(value, order="C")), path)}
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is list:
            return [encode(item, f"{path}.{index}") for index, item in enumerate(value)]
        if type(value) is tuple:
            return {"$tuple": [encode(item, f"{path}.{index}") for index, item in enumerate(value)]}
        if isinstance(value, dict):
            return encode_dict(value, path)
        raise ValueError(
            f"state{path}: saw a {type(value).__name__}, expected a tensor, numeric array, number, string, bool, None, "
            "list, tuple or dict; convert it before saving"
        )

    def encode_dict(value: dict[Any, Any], path: str) -> Any:
        items = {key: encode(item, f"{path}.{key}") for key, item in value.items()}
        if all(type(key) is str and not key.startswith("$") for key in items):
            return items
        return {"$items": [[encode(key, path), item] for key, item in items.items()]}

    return encode(state, ""), tensors


def unflatten_state(encoded: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `flatten_state`. Raises `KeyError` where a tensor is missing."""
    if isinstance(encoded, list):
        return [unflatten_state(item, tensors) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    match list(encoded.items()):
        case [("$tensor", name)]:
            return tensors[name]
        case [("$array", name)]:
            return tensors[name].numpy()
        case [("$float", text)]:
            return float(text)
        case [("$tuple", items)]:
            return tuple(unflatten_state(item, tensors) for item in items)
        case [("$items", pairs)]:
            return {unflatten_state(key, tensors): unflatten_state(item, tensors) for key, item in pairs}
    return {key: unflatten_state(item, tensors) for key, item in encoded.items()}
