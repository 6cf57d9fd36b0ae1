"""Models as Hugging Face `deepseek_v3` folders: exported whole or not at all, and loaded back bit for bit.

Loaded are our exports, what transformers' `DeepseekV3ForCausalLM` saves
(experts one by one or stacked) and unquantised releases. Invariants: every
tensor of the model is read exactly once and none is left over; the router
bias is fp32 whatever the dtype of the weights; nothing is unpickled.
Left out: quantised weights, and the tokenizer, which the caller saves and
loads beside the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from openk2.checkpoint.folder import whole_folder
from openk2.checkpoint.hf_config import CONFIG_FILE, config_fields, read_config, read_json
from openk2.checkpoint.hf_table import Drop, weight_table
from openk2.config.model import ModelConfig
from openk2.model.model import Model

MAX_SHARD_BYTES = 4 << 30
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_NAMES_SHOWN = 3


def model_tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face's name and our tensor (a view) of every weight and router bias."""
    state = model.state_dict()
    for operation in weight_table(model.config):
        if not isinstance(operation, Drop):
            yield from operation.views(state[operation.ours]).items()


def copy_tensors(model: Model, names: Iterable[str], read: Callable[[str], Tensor], source: str) -> None:
    """Fill the model from tensors by Hugging Face name, each read once.

    `names` are all the names there; `source` is what messages call the place.
    Raises `ValueError` in one line for missing, unexpected or misshapen tensors.
    """
    present = set(names)
    table = weight_table(model.config, present)
    state = model.state_dict()
    targets: dict[str, Tensor] = {}
    for operation in table:
        if isinstance(operation, Drop):
            present.discard(operation.theirs)
        else:
            targets.update(operation.views(state[operation.ours]))
    missing, unexpected = sorted(targets.keys() - present), sorted(present - targets.keys())
    if missing or unexpected:
        raise ValueError(
            f"{source}: saw {len(missing)} missing{_examples(missing)} and {len(unexpected)} unexpected"
            f"{_examples(unexpected)} tensors, expected exactly the {len(targets)} of the model in {CONFIG_FILE}"
        )
    for name, target in targets.items():
        tensor = read(name)
        if tensor.shape != target.shape:
            raise ValueError(f"{source}: saw {name} of shape {list(tensor.shape)}, expected {list(target.shape)}")
        with torch.no_grad():
            target.copy_(tensor)


def load_hf(folder: Path, *, dtype: torch.dtype | None = None) -> Model:
    """The model in a Hugging Face folder, its weights and products in `dtype`.

    The default is the dtype of the stored weights, and fp32 for fp16 ones, in
    which the model does not compute. Raises `ValueError` in one line.
    """
    folder = Path(folder)
    config = read_config(folder)
    shards = _find_shards(folder)
    if "quantization_config" in read_json(folder / CONFIG_FILE):
        raise ValueError(
            f"{folder}: saw quantised weights (quantization_config in {CONFIG_FILE}), expected bf16 or fp32; "
            "FP8 weights cannot be read yet"
        )
    try:
        with ExitStack() as stack:
            files = {name: file for path in shards for name, file in _open(stack, path)}
            dtype = dtype or _stored_dtype(folder, files)
            model = empty_model(config, dtype)
            copy_tensors(model, files, lambda name: files[name].get_tensor(name), str(folder))
    except SafetensorError as error:
        raise ValueError(f"{folder}: saw broken weights ({' '.join(str(error).split())}); fetch them again") from None
    return model


def empty_model(config: ModelConfig, dtype: torch.dtype) -> Model:
    """A model whose weights are allocated in `dtype` and not yet set; router biases are fp32."""
    with torch.device("meta"):
        model = Model(config, compute_dtype=dtype)
    return model.to(dtype).to_empty(device="cpu")


def export_hf(
    model: Model,
    folder: Path,
    *,
    dtype: torch.dtype,
    model_card: str,
    license_text: str,
    generation_config: Mapping[str, Any] | None = None,
    bos_token_id: int | None = None,
    eos_token_id: int | list[int] | None = None,
    pad_token_id: int | None = None,
    save_tokenizer: Callable[[Path], None] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write the model as a folder that transformers and serving engines load; returns the folder.

    Weights are stored in `dtype`, router biases in fp32. `generation_config`
    adds to the token ids in generation_config.json; `save_tokenizer` is called
    with the folder while it is still aside. An earlier export at the same
    place is replaced; any other folder with something in it is refused.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / CONFIG_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: saw other files there, expected a new folder or an earlier export; choose another")
    ids = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
    name = str(dtype).removeprefix("torch.")
    shards = _plan_shards(model, dtype, max_shard_bytes)
    num_bytes = sum(tensor.numel() * _stored(key, dtype).itemsize for key, tensor in model_tensors(model))
    with whole_folder(folder, num_bytes) as aside:
        _write_json(aside / CONFIG_FILE, {**config_fields(model.config), **ids, "torch_dtype": name})
        _write_json(aside / "generation_config.json", {**ids, **(generation_config or {})})
        (aside / "README.md").write_text(model_card)
        (aside / "LICENSE").write_text(license_text)
        _write_shards(aside, shards, dtype, num_bytes)
        if save_tokenizer is not None:
            save_tokenizer(aside)
    return folder


def _stored(name: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if name.endswith("e_score_correction_bias") else dtype


def _plan_shards(model: Model, dtype: torch.dtype, max_bytes: int) -> list[dict[str, Tensor]]:
    """The tensors in order, a new shard wherever the next would pass `max_bytes`."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in model_tensors(model):
        size = tensor.numel() * _stored(name, dtype).itemsize
        if shards[-1] and filled + size > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    return shards


def _write_shards(folder: Path, shards: list[dict[str, Tensor]], dtype: torch.dtype, num_bytes: int) -> None:
    """One file, or several and their index; copies are made a shard at a time."""
    single = len(shards) == 1
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = WEIGHTS_FILE if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map.update(dict.fromkeys(shard, file))
        copies = {
            name: tensor.to(_stored(name, dtype), copy=True, memory_format=torch.contiguous_format)
            for name, tensor in shard.items()
        }
        save_file(copies, folder / file, metadata={"format": "pt"})
    if not single:
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": num_bytes}, "weight_map": weight_map})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _find_shards(folder: Path) -> list[Path]:
    """The folder's weight files, by the index where there is one."""
    index = folder / INDEX_FILE
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{index}: saw no weight_map of names to files, expected one; fetch the file again")
        names = sorted(set(weight_map.values()))
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise ValueError(f"{index}: saw {name!r} named, expected a file of that name beside it; fetch it again")
        return [folder / name for name in names]
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    raise ValueError(
        f"{folder}: saw neither {WEIGHTS_FILE} nor {INDEX_FILE}, expected the weights as safetensors "
        "(pickled .bin weights are not read)"
    )


def _open(stack: ExitStack, path: Path) -> Iterator[tuple[str, Any]]:
    """(tensor name, open file) of one shard."""
    try:
        file = stack.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(
            f"{path}: saw broken weights ({problem}), expected a safetensors file; fetch it again"
        ) from None
    for name in file.keys():  # noqa: SIM118 (a file of tensors is not iterable)
        yield name, file


def _stored_dtype(folder: Path, files: Mapping[str, Any]) -> torch.dtype:
    """The dtype of the embedding, or fp32 where that is fp16."""
    name = "model.embed_tokens.weight"
    if name not in files:
        raise ValueError(f"{folder}: saw no {name}, expected the weights of a causal language model")
    dtype: torch.dtype = files[name].get_slice(name)[:0].dtype
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(
            f"{folder}: saw weights in {dtype}, expected bf16 or fp32; quantised weights cannot be read yet"
        )
    return torch.float32 if dtype == torch.float16 else dtype


def _examples(names: list[str]) -> str:
    if not names:
        return ""
    return f" ({', '.join(names[:_NAMES_SHOWN])}{', ...' if len(names) > _NAMES_SHOWN else ''})"
