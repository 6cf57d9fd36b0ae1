"""Reinforcement learning with verifiable rewards and a thin self-critique."""

from openk2.posttrain.rl.loop import rl

__all__ = ["rl"]
