"""Hugging Face's `config.json` of `deepseek_v3` models, read into `ModelConfig` and written from it.

What is read: our exports, what transformers writes (`rope_parameters`), and
K2's own file (`model_type` kimi_k2, `rope_scaling`). Invariant: an option that
the model does not have is refused by name, never ignored. Absent YaRN keys
take transformers' defaults, which are not `YarnConfig`'s (those are K2's).
Left out: multi-token prediction heads, which K2 does not have.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from openk2.config.model import ModelConfig, YarnConfig

CONFIG_FILE = "config.json"
DEFAULT_ROPE_THETA = 10000.0  # transformers' value where neither place states one

# Options with one supported value, which is also what an absent key means.
_FIXED: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "moe_layer_freq": 1,
    "rope_interleave": True,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
}
_ROPE_FIELDS = ("rope_theta", "rope_scaling")
_YARN_FIELDS = tuple(field.name for field in dataclasses.fields(YarnConfig))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `ValueError` in one line."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: saw no file, expected a model folder in Hugging Face layout") from None
    except NotADirectoryError:
        raise ValueError(f"{path.parent}: saw a file, expected a model folder in Hugging Face layout") from None
    except ValueError as error:
        raise ValueError(f"{path}: saw broken JSON ({error}), expected an object; fetch the file again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: saw a JSON {type(content).__name__}, expected an object; fetch the file again")
    return content


def read_config(folder: Path) -> ModelConfig:
    """The model's shape from `folder/config.json`. Raises `ValueError` naming the option that is not supported."""
    path = Path(folder) / CONFIG_FILE
    raw = read_json(path)
    if raw.get("model_type") not in ("deepseek_v3", "kimi_k2"):
        raise ValueError(
            f"{path}: saw model_type {raw.get('model_type')!r}, expected 'deepseek_v3' or 'kimi_k2'; "
            "other architectures are not supported"
        )
    for name, supported in _FIXED.items():
        if raw.get(name, supported) != supported:
            raise ValueError(
                f"{path}: saw {name} = {raw[name]!r}, expected {supported!r}; the model has no other form of it"
            )
    if raw.get("num_key_value_heads") not in (None, raw.get("num_attention_heads")):
        raise ValueError(
            f"{path}: saw num_key_value_heads = {raw['num_key_value_heads']!r}, expected num_attention_heads "
            f"({raw.get('num_attention_heads')!r}); latent attention has no key-value groups"
        )
    values = {
        field.name: _checked(path, field, raw)
        for field in dataclasses.fields(ModelConfig)
        if field.name in raw and field.name not in _ROPE_FIELDS
    }
    needed = [f.name for f in dataclasses.fields(ModelConfig) if f.default is dataclasses.MISSING]
    missing = [name for name in needed if name not in values]
    if missing:
        raise ValueError(f"{path}: saw no {', '.join(missing)}, expected every dimension of the model")
    theta, scaling = _rope(path, raw)
    try:
        return ModelConfig(**values, rope_theta=theta, rope_scaling=scaling)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """What `config.json` states about the shape, in the form that old and new transformers and K2's own code read."""
    fields = dataclasses.asdict(config)
    if config.rope_scaling is not None:
        # "type" is what K2's code looks up, "rope_type" what transformers does.
        fields["rope_scaling"] = {"type": "yarn", "rope_type": "yarn", **fields["rope_scaling"]}
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **fields,
        **_FIXED,
        "num_key_value_heads": config.num_attention_heads,
        "num_nextn_predict_layers": 0,
        "use_cache": True,
    }


def _checked(path: Path, field: dataclasses.Field[Any], raw: dict[str, Any]) -> Any:
    """The field's value, if it has the field's type."""
    value, kind = raw[field.name], str(field.type)
    if "bool" in kind:
        good = isinstance(value, bool)
    elif "float" in kind:
        good = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        good = (isinstance(value, int) and not isinstance(value, bool)) or (value is None and "None" in kind)
    if not good:
        raise ValueError(f"{path}: saw {field.name} = {value!r}, expected {kind.replace(' | ', ' or ')}")
    return float(value) if kind == "float" else value


def _rope(path: Path, raw: dict[str, Any]) -> tuple[float, YarnConfig | None]:
    """(theta, scaling) from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""
    name = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    rope = raw.get(name) or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{path}: saw {name} = {rope!r}, expected an object or null")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "yarn"):
        raise ValueError(
            f"{path}: saw {name} of type {kind!r}, expected 'yarn' or none; other scalings are not supported"
        )
    for option, supported in (("attention_factor", None), ("truncate", True), ("partial_rotary_factor", 1.0)):
        if rope.get(option, supported) not in (None, supported):
            raise ValueError(f"{path}: saw {name}.{option} = {rope[option]!r}, expected it absent; it is not supported")
    theta = _number(path, "rope_theta", rope.get("rope_theta") or raw.get("rope_theta") or DEFAULT_ROPE_THETA)
    if kind == "default":
        return theta, None
    length = _number(path, "max_position_embeddings", raw.get("max_position_embeddings"))
    original = rope.get("original_max_position_embeddings") or length
    absent = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 0.0, "mscale_all_dim": 0.0}
    values = {**absent, "factor": length / original, **{key: rope[key] for key in _YARN_FIELDS if rope.get(key)}}
    values = {key: _number(path, f"{name}.{key}", value) for key, value in values.items()}
    return theta, YarnConfig(**{**values, "original_max_position_embeddings": int(original)})


def _number(path: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{path}: saw {name} = {value!r}, expected a number")
    return float(value)
