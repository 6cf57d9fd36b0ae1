"""What `import openk2` promises: few names, sorted, each loads, and they do what the README shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import openk2


def test_the_names_are_sorted_and_each_loads() -> None:
    assert openk2.__all__ == sorted(openk2.__all__) == dir(openk2)
    assert openk2.__all__ == ["Codec", "MuonClip", "__version__", "load", "recipes"]
    for name in openk2.__all__:
        assert getattr(openk2, name) is not None
    with pytest.raises(AttributeError, match="it has Codec, MuonClip"):
        _ = openk2.Kodec  # type: ignore[attr-defined]


def test_load_gives_a_model_and_its_codec(checkpoint: Path) -> None:
    model, codec = openk2.load(checkpoint)
    assert isinstance(codec, openk2.Codec)
    ids = codec.encode([{"role": "user", "content": "Hi."}], add_generation_prompt=True).ids
    with torch.no_grad():
        logits = model(torch.tensor([ids, ids]))
    assert logits.shape == (2, len(ids), model.config.vocab_size)
    assert torch.equal(logits[0], logits[1]) and logits.isfinite().all()
    assert not model.training


def test_without_a_tokenizer_the_codec_is_none(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "bare" / name).unlink()
    model, codec = openk2.load(str(tmp_path / "bare"))
    assert codec is None and model.config == openk2.load(checkpoint)[0].config


def test_a_dtype_can_be_asked_for(checkpoint: Path) -> None:
    assert openk2.load(checkpoint)[0].embed_tokens.weight.dtype == torch.bfloat16
    model, _ = openk2.load(checkpoint, dtype=torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_muonclip_trains_a_model_that_declares_itself(checkpoint: Path) -> None:
    model, _ = openk2.load(checkpoint, dtype=torch.float32)
    optimizer = openk2.MuonClip.from_config(
        model.parameter_specs(), model.qk_groups(), openk2.recipes.tiny_pretrain().optim
    )
    assert isinstance(optimizer, torch.optim.Optimizer)
