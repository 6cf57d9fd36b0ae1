"""openk2: the whole Kimi K2 recipe, small enough to run and laid out to be planned large."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from openk2.version import __version__

if TYPE_CHECKING:
    from openk2 import recipes
    from openk2.chat.codec import Codec
    from openk2.checkpoint.variant import load
    from openk2.optim.muonclip import MuonClip

__all__ = ["Codec", "MuonClip", "__version__", "load", "recipes"]

# Looked up when first used, so that configs and plans work on a machine without torch.
_HOMES = {
    "Codec": ("openk2.chat.codec", "Codec"),
    "MuonClip": ("openk2.optim.muonclip", "MuonClip"),
    "load": ("openk2.checkpoint.variant", "load"),
    "recipes": ("openk2.recipes", None),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'openk2' has no attribute {name!r}; it has {', '.join(__all__)}")
    home, attribute = _HOMES[name]
    module = importlib.import_module(home)
    return module if attribute is None else getattr(module, attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
