"""The guide to MuonClip as a library does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch


def test_the_guides_snippets_run_one_after_the_other(repository: Path, capsys: Any) -> None:
    page = (repository / "docs" / "guides" / "muonclip.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 5
    known: dict[str, Any] = {}
    for block in blocks:
        exec(block, known)  # our own page
    said = capsys.readouterr().out
    assert "muon.matrix" in said and "tensor([[1., 1., 1., 1.]])" in said
    assert said.count("pass  muon") == 4 and "FAIL" not in said
    routes = {spec.name: spec.route for spec in known["MuonClip"].from_module(known["model"], adamw=["gate"]).specs}
    assert routes == {
        "mlp.weight": "muon",
        "table.weight": "adamw",
        "mlp.bias": "adamw",
        "gate.weight": "adamw",
        "gate.bias": "adamw",
        "head.weight": "adamw",
        "head.bias": "adamw",
    }
    assert torch.isfinite(known["model"]["mlp"].weight).all()
