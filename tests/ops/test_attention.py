"""Attention against its slow twin: forward, gradients, and the bf16 error that its rounding allows."""

from __future__ import annotations

import pytest
import torch
from twins import BF16_ROUNDING, compare, draw, relative_error

from openk2.ops import attention
from openk2.ops.attention import QUERY_BLOCK, Tiling, document_attention, exact_peaks, reference_attention


def random_starts(batch: int, length: int) -> torch.Tensor:
    """Documents of random lengths, different in each row; row 0 is one document."""
    begins = torch.rand(batch, length) < 3 / length
    begins[:, 0], begins[0, 1:] = True, False
    index = torch.arange(length).expand(batch, length)
    return torch.where(begins, index, 0).cummax(1).values


@pytest.mark.parametrize("length", [1, 7, QUERY_BLOCK - 1, QUERY_BLOCK, QUERY_BLOCK + 1, 2 * QUERY_BLOCK + 3])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("how", ["kept", "made again", "blocks of keys", "masks made again"])
def test_attention_equals_its_twin(length, dtype, rtol, how, monkeypatch):
    if how != "kept":
        monkeypatch.setattr(attention, "KEPT_BYTES", 0)
    if how == "masks made again":
        monkeypatch.setattr(attention, "MASK_BYTES", 0)
    if how == "blocks of keys":
        monkeypatch.setattr(attention, "KEY_BLOCK", 64)
    q, k, v = draw(2, 2, length, 6, dtype=dtype), draw(2, 2, length, 6, dtype=dtype), draw(2, 2, length, 5, dtype=dtype)
    starts = random_starts(2, length)
    compare(
        lambda q, k, v: document_attention(q, k, v, Tiling(starts), 0.7)[0],
        lambda q, k, v: reference_attention(q, k, v, starts, 0.7)[0],
        (q, k, v),
        rtol=rtol,
        floor=float(length == 1),  # a token that sees itself alone: the scores' gradient is nothing but rounding
    )


def test_probabilities_are_made_again_where_they_would_be_many(monkeypatch):
    """In the backward pass each tile is computed again exactly when nothing was kept; both give the same bits."""
    computed = []
    real = attention._scores
    monkeypatch.setattr(attention, "_scores", lambda *given: computed.append(given[-1]) or real(*given))
    monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
    starts = random_starts(2, 11)
    q, k, v = draw(2, 2, 11, 3), draw(2, 2, 11, 3), draw(2, 2, 11, 4)
    scores = 2 * sum(tile.num_scores for tiles in Tiling(starts).blocks for tile in tiles)
    found = []
    for kept_bytes in (8 * scores, 8 * scores - 1):
        monkeypatch.setattr(attention, "KEPT_BYTES", kept_bytes)
        computed.clear()
        out = document_attention(q, k, v, Tiling(starts), 0.5)[0]
        tiles = len(computed)
        found.append(torch.autograd.grad(out.sum(), (q, k, v)))
        assert len(computed) == (tiles if kept_bytes == 8 * scores else 2 * tiles)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_masks_are_few(monkeypatch):
    """Tiles within one document share theirs; others are kept up to a size in all, and each says what it hides."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
    monkeypatch.setattr(attention, "KEY_STEP", 4)
    one = Tiling(torch.zeros(3, 16, dtype=torch.int64))
    assert len({id(one.mask(tile)) for tiles in one.blocks for tile in tiles}) == 4  # by distance from the first key
    starts = random_starts(3, 34)  # the last block is of two queries
    # Begin within one step of keys: the first tiles of later blocks hide something, from each row another thing.
    starts[1, 16:], starts[2, 16:] = 13, 14
    for mask_bytes in (attention.MASK_BYTES, 2 * 4 * 16, 0):
        monkeypatch.setattr(attention, "MASK_BYTES", mask_bytes)
        tiling = Tiling(starts)
        tiles = [tile for tiles in tiling.blocks for tile in tiles]
        own = [tile for tile in tiles if tile.mask and tile.mask[0] == "rows"]
        kept = [mask for tile in own if (mask := tiling.mask(tile)) is tiling.mask(tile)]
        assert sum(mask.nbytes for mask in kept) <= mask_bytes
        assert bool(kept) == (mask_bytes > 0)
        for tile in tiles:
            rows, columns = slice(tile.first, tile.last), slice(tile.low, tile.high)
            want = attention.hidden_pairs(starts)[tile.rows, :, rows, columns]
            mask = tiling.mask(tile)
            assert torch.equal(torch.zeros_like(want) if mask is None else (mask < 0).expand_as(want), want)


@pytest.mark.parametrize("key_block", [attention.KEY_BLOCK, 2])
def test_attention_gradcheck(key_block, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
    monkeypatch.setattr(attention, "KEY_STEP", 2)
    monkeypatch.setattr(attention, "KEY_BLOCK", key_block)
    starts = torch.tensor([[0, 0, 0, 3, 3, 3, 3, 7, 7, 7]])
    inputs = (draw(1, 2, 10, 3), draw(1, 2, 10, 3), draw(1, 2, 10, 4))
    assert torch.autograd.gradcheck(lambda q, k, v: document_attention(q, k, v, Tiling(starts), 0.5)[0], inputs)


def test_attention_never_looks_ahead_or_into_another_document(monkeypatch):
    """What is hidden may hold anything, even values that would dominate, and gets no gradient."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
    starts = torch.tensor([[0, 0, 0, 0, 0, 5, 5, 5, 5, 5, 5]])
    q, k, v = draw(1, 2, 11, 4), draw(1, 2, 11, 4), draw(1, 2, 11, 4)
    out, _ = document_attention(q, k, v, Tiling(starts), 1.0)
    grad_k, grad_v = torch.autograd.grad(out[:, :, 5:8].sum(), (k, v))
    assert not grad_k[:, :, :5].any() and not grad_k[:, :, 8:].any()
    assert not grad_v[:, :, :5].any() and not grad_v[:, :, 8:].any()
    loud_k, loud_v = k.detach().clone(), v.detach().clone()
    for t in (*range(5), *range(8, 11)):
        loud_k[:, :, t], loud_v[:, :, t] = 1e3, 1e6
    again, _ = document_attention(q, loud_k, loud_v, Tiling(starts), 1.0)
    assert torch.equal(out[:, :, 5:8], again[:, :, 5:8])


def test_earlier_documents_cost_nothing():
    """A row of many documents computes little more than its documents' own scores, whatever the other row holds."""
    length, documents = 8 * QUERY_BLOCK, 16
    starts = torch.zeros(2, length, dtype=torch.int32)
    starts[1] = torch.arange(length) // (length // documents) * (length // documents)
    tiles = [tile for tiles in Tiling(starts).blocks for tile in tiles]
    area = [0, 0]
    for tile in tiles:
        for row in range(tile.rows.start, tile.rows.stop):
            area[row] += (tile.last - tile.first) * (tile.high - tile.low)
    assert area[0] == QUERY_BLOCK**2 * 36  # whole blocks below and on the diagonal of 8 x 8
    assert area[1] <= QUERY_BLOCK**2 * 8


@pytest.mark.parametrize("key_block", [64, attention.KEY_BLOCK])
@pytest.mark.parametrize("length", [5, QUERY_BLOCK + 9])
def test_maximum_scores_are_those_of_the_explicit_matrix(length, key_block, monkeypatch):
    """fp32 inputs: the same maxima, signed, hidden scores left out; bf16 inputs: within the rounding."""
    monkeypatch.setattr(attention, "KEY_BLOCK", key_block)
    starts = random_starts(3, length)
    q, k, v = (torch.randn(3, 2, length, 8) for _ in range(3))
    q[:, 1] = -q[:, 1].abs()
    k[:, 1] = k[:, 1].abs()  # every score of head 1 is negative: a maximum that started at 0 would hide them
    explicit = reference_attention(q.double(), k.double(), v.double(), starts, 0.3)[1]
    assert bool((explicit[:, 1] < 0).all())
    for found in (document_attention(q, k, v, Tiling(starts), 0.3)[1], exact_peaks(q, k, Tiling(starts), 0.3)):
        torch.testing.assert_close(found, explicit.float(), rtol=1e-6, atol=1e-6)

    q16, k16, v16 = q.bfloat16(), k.bfloat16(), v.bfloat16()
    exact = exact_peaks(q16, k16, Tiling(starts), 0.3)
    explicit = reference_attention(q16.double(), k16.double(), v16.double(), starts, 0.3)[1]
    torch.testing.assert_close(exact, explicit.float(), rtol=1e-6, atol=1e-6)
    rounded = document_attention(q16, k16, v16, Tiling(starts), 0.3)[1]
    assert rounded.dtype == torch.float32
    assert bool(((rounded - exact).abs() <= BF16_ROUNDING * exact.abs()).all())


def test_attention_in_bf16_is_as_near_as_bf16_allows():
    starts = random_starts(2, 300)
    inputs = [torch.randn(2, 2, 300, 16).bfloat16().requires_grad_() for _ in range(3)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    out, _ = document_attention(*inputs, Tiling(starts), 0.25)
    want, _ = reference_attention(*wide, starts, 0.25)
    weight = torch.randn_like(want)
    got_grads = torch.autograd.grad(out, inputs, weight.bfloat16())
    want_grads = torch.autograd.grad(want, wide, weight.bfloat16().double())
    for a, b in zip((out, *got_grads), (want, *want_grads), strict=True):
        assert a.dtype == torch.bfloat16
        assert relative_error(a, b) <= 3 * BF16_ROUNDING


def test_a_rows_gradients_in_bf16_do_not_depend_on_its_company():
    """Many tiles' products are summed wide, however many rows share the tiles."""
    length = 4 * QUERY_BLOCK
    inputs = [torch.randn(4, 1, length, 16).bfloat16() for _ in range(3)]
    weight = torch.randn(4, 1, length, 16).bfloat16()
    starts = torch.zeros(4, length, dtype=torch.int64)

    def gradients(rows: slice) -> tuple[torch.Tensor, ...]:
        own = [x[rows].clone().requires_grad_() for x in inputs]
        out, _ = document_attention(*own, Tiling(starts[rows]), 0.25)
        return torch.autograd.grad(out, own, weight[rows])

    for together, alone in zip(gradients(slice(0, 4)), gradients(slice(2, 3)), strict=True):
        torch.testing.assert_close(together[2:3], alone, rtol=2 * BF16_ROUNDING, atol=1e-6)
