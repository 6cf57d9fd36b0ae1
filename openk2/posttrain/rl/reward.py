"""What a rollout is worth: the verifiable outcome less the token budget's penalty; the critic's share comes on top."""

from __future__ import annotations

from openk2.config.run import RLConfig
from openk2.protocols import Rollout


def verifiable_reward(rollout: Rollout, config: RLConfig) -> float:
    """1 for a dialogue whose calls, executed, and answers are right; 0 otherwise; less the penalty if cut."""
    return float(rollout.outcome.success) - config.budget_penalty * float(rollout.truncated)
