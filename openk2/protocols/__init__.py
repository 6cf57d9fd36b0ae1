"""What the layers and stages hand each other: small records and callables.

A stage never imports another stage, and never asks which engine stands behind
a callable. It is given a `Generate` or a `Score` by `cli` or `speedrun.py`.
No torch here: token ids are plain integers, arrays are numpy's.
"""

from openk2.protocols.generation import (
    ChatCodec,
    Completion,
    Constraint,
    Encoded,
    Generate,
    Grammar,
    Message,
    Sampler,
    SamplingParams,
    Score,
    ToolSpec,
)
from openk2.protocols.parameters import ParameterSpec, Placement, QKGroup, QKRows, Result
from openk2.protocols.tasks import (
    Environment,
    EnvironmentFailure,
    ExpectedCall,
    Outcome,
    Rollout,
    Task,
    ToolError,
    Turn,
    task_from_dict,
    task_to_dict,
)

__all__ = [
    "ChatCodec",
    "Completion",
    "Constraint",
    "Encoded",
    "Environment",
    "EnvironmentFailure",
    "ExpectedCall",
    "Generate",
    "Grammar",
    "Message",
    "Outcome",
    "ParameterSpec",
    "Placement",
    "QKGroup",
    "QKRows",
    "Result",
    "Rollout",
    "Sampler",
    "SamplingParams",
    "Score",
    "Task",
    "ToolError",
    "ToolSpec",
    "Turn",
    "task_from_dict",
    "task_to_dict",
]
