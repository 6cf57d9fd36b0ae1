"""What `import openk2` promises: few names, sorted, each loads, and they do what the README shows."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

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


def test_the_readmes_snippets_run(checkpoint: Path, repository: Path) -> None:
    """As they stand, one after the other, with a small model in place of the speedrun's; the step moves the weights."""
    page = (repository / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 4 and "MuonClip" in page
    codec = openk2.Codec.load(checkpoint)
    messages = [{"role": "user", "content": "Hi."}]
    known: dict[str, Any] = {
        "messages": messages,
        "tools": None,
        "sampled_ids": codec.tokenizer.encode("Hello."),
    }
    for block in blocks:
        code = re.sub(r"out/speedrun/(base|instruct)", str(checkpoint), block)
        assert "out/" not in code
        exec(code, known)  # our own page
    assert known["logits"].shape[-1] == known["model"].config.vocab_size
    assert known["message"]["content"] == "Hello." and known["encoded"].ids
    before = openk2.load(checkpoint, dtype=torch.float32)[0].state_dict()
    moved = [name for name, tensor in known["model"].state_dict().items() if not torch.equal(tensor, before[name])]
    assert any("o_proj" in name for name in moved) and any("norm" in name for name in moved)
