"""compare-modes: what it proves, what it measures, and that it can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from openk2.cli import main
from openk2.commands import compare_modes
from openk2.ops import invariant

SMALL = ["--prompts", "7", "--tokens", "6"]


def test_the_deterministic_bits_are_the_same_everywhere(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare-modes", str(checkpoint), *SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] and found["tokens"] == 42
    assert found["same_bits"] == dict.fromkeys(
        ("company", "prefix hits", "prompts in pieces", "training's forward pass"), 1.0
    )
    fast = found["fast"]
    assert 0 < fast["mean_difference"] <= fast["max_difference"] < 0.5
    assert 0.8 < fast["router_agreement"] <= 1 and fast["same_choices"] <= fast["router_agreement"]
    assert "deterministic: the same bits as alone" in compare_modes.describe(found)


def test_arithmetic_that_depends_on_company_is_told(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As products would on another machine: rounded otherwise where there are more rows."""
    attend = invariant._attend

    def uneven(q: torch.Tensor, *rest: object) -> object:
        mixed, peaks, sums = attend(q, *rest)
        return mixed * (1 + 2.0**-6 * (len(q) > 1)), peaks, sums

    monkeypatch.setattr(invariant, "_attend", uneven)
    assert main(["compare-modes", str(checkpoint), *SMALL, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"] and found["same_bits"]["company"] < 1


def test_bad_numbers_are_refused(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, saw in ((["--prompts", "0"], "--prompts: saw 0"), (["--tokens", "9999"], "saw 9999 new tokens")):
        assert main(["compare-modes", str(checkpoint), *options]) == 2
        assert saw in capsys.readouterr().err
