"""Inference with the latent cache."""

from openk2.engine.engine import Engine

__all__ = ["Engine"]
