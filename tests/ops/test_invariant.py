"""Batch-invariant arithmetic: right, and the same bits for a row whatever is beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from openk2.ops import fused, invariant
from openk2.ops.attention import reference_attention
from openk2.ops.experts import routed_experts
from openk2.ops.fused import normalise_logits_, rms_norm_forward, swiglu_forward
from openk2.ops.invariant import batch_invariant, is_batch_invariant, tile_attention, wide_linear

ROWS = (1, 2, 3, 7, 31, 32, 33, 64, 100)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
    mixed, _, sums = tile_attention(q, k, v, positions, 0.3)
    return mixed / sums.unsqueeze(-1)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 300])
def test_tile_attention_is_attention(length):
    q, k, v = (normal(2, 3, length, width, seed=width, dtype=torch.float32) for width in (16, 16, 12))
    k = normal(2, 3, length, 16, seed=5, dtype=torch.float32)
    starts = torch.zeros(2, length, dtype=torch.int64)
    want, peaks = reference_attention(q, k, v, starts, 0.3)
    positions = torch.arange(length).expand(2, -1)
    torch.testing.assert_close(attend(q, k, v, positions), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tile_attention(q, k, v, positions, 0.3)[1], peaks, rtol=1e-5, atol=1e-5)


def test_a_query_has_the_same_bits_in_any_company():
    """Alone, among others of its sequence, beside longer sequences, and with stale rows behind its last key."""
    q, k, v = normal(3, 4, 400, 24, seed=1), normal(3, 4, 400, 24, seed=2), normal(3, 4, 400, 20, seed=3)
    whole = attend(q, k, v, torch.arange(400).expand(3, -1))
    for row, first, last in ((0, 0, 1), (1, 63, 66), (2, 399, 400), (0, 100, 357), (1, 255, 300)):
        part = attend(
            q[row : row + 1, :, first:last], k[row : row + 1], v[row : row + 1], torch.arange(first, last)[None]
        )
        assert torch.equal(part[0], whole[row, :, first:last])
        shorter = attend(
            q[row : row + 1, :, first:last],
            k[row : row + 1, :, :last],
            v[row : row + 1, :, :last],
            torch.arange(first, last)[None],
        )
        assert torch.equal(shorter, part)
    positions = torch.tensor([[5], [390], [64]])
    apart = torch.stack([q[row, :, place] for row, place in enumerate(positions.flatten().tolist())])[:, :, None]
    together = attend(apart, k, v, positions)
    for row, place in enumerate(positions.flatten().tolist()):
        assert torch.equal(together[row, :, 0], whole[row, :, place])


def experts(x: Tensor) -> Tensor:
    chosen = torch.stack([(x[:, 0].float() * 100).long() % 8, (x[:, 0].float() * 100).long() % 8 ^ 1], dim=1)
    return routed_experts(x, chosen, x[:, :2].float().abs(), normal(8, 96, 64, seed=7), normal(8, 64, 48, seed=8))


KERNELS = {
    "linear": lambda x: torch.nn.functional.linear(x, normal(200, 64, seed=6)),
    "router": lambda x: wide_linear(x.float(), normal(16, 64, seed=5, dtype=torch.float32)),
    "norm": lambda x: rms_norm_forward(x, torch.linspace(0.1, 2, 64), 1e-6)[0],
    "swiglu": swiglu_forward,
    "experts": experts,
    "log-sum-exp": lambda x: normalise_logits_(x.clone())[0],
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_row_has_the_same_bits_in_any_number_of_rows(name):
    """A machine on which this fails has products whose rows depend on their number: invariant attention cannot keep
    its promise there."""
    x = normal(500, 64, seed=4)
    with batch_invariant():
        whole = KERNELS[name](x)
        for count in ROWS:
            for first in (0, 1, 37):
                assert torch.equal(KERNELS[name](x[first : first + count].contiguous()), whole[first : first + count])


def test_nothing_is_compiled_within(monkeypatch):
    monkeypatch.setattr(fused, "_enabled", True)
    monkeypatch.setattr(fused, "SMALL", 0)
    compiled: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *a: compiled.append("yes") or function(*a))
    kernel = fused.fused(lambda x: x + 1)
    with batch_invariant():
        kernel(torch.ones(3))
        with batch_invariant(False):  # what is asked for further out stays
            kernel(torch.ones(3))
    assert compiled == []
    kernel(torch.ones(3))
    assert compiled == ["yes"]


def test_the_mode_ends_with_its_block():
    with pytest.raises(RuntimeError), batch_invariant():
        assert is_batch_invariant()
        raise RuntimeError
    assert not is_batch_invariant()
    x, weight = normal(5, 8, dtype=torch.float32), normal(3, 8, seed=1, dtype=torch.float32)
    with batch_invariant():
        torch.testing.assert_close(wide_linear(x, weight), x @ weight.t())
    assert invariant.ROW_BLOCK > 5
