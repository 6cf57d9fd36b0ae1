"""Inference with the latent cache."""

from openk2.engine.engine import Engine, EngineSettings, Usage
from openk2.engine.sequence import Request, Sequence, Status

__all__ = ["Engine", "EngineSettings", "Request", "Sequence", "Status", "Usage"]
