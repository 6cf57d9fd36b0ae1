"""Settings as values: frozen dataclasses, presets, strict overrides, and their form in files. No torch."""

from openk2.config.model import ModelConfig, YarnConfig
from openk2.config.overrides import Option, apply_overrides, option_table
from openk2.config.presets import MODEL_PRESETS
from openk2.config.run import (
    DataConfig,
    EvaluateConfig,
    OptimConfig,
    ParallelConfig,
    PretrainConfig,
    RLConfig,
    SFTConfig,
    SpeedrunConfig,
    SynthConfig,
    TrainConfig,
)
from openk2.config.schema import ConfigError
from openk2.config.serialize import digest, from_dict, to_dict

__all__ = [
    "MODEL_PRESETS",
    "ConfigError",
    "DataConfig",
    "EvaluateConfig",
    "ModelConfig",
    "OptimConfig",
    "Option",
    "ParallelConfig",
    "PretrainConfig",
    "RLConfig",
    "SFTConfig",
    "SpeedrunConfig",
    "SynthConfig",
    "TrainConfig",
    "YarnConfig",
    "apply_overrides",
    "digest",
    "from_dict",
    "option_table",
    "to_dict",
]
