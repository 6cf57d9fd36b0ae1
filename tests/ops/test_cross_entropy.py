"""The log-probability against its slow twin: forward, gradients, and the bf16 error that its rounding allows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from twins import BF16_ROUNDING, compare, draw, relative_error

from openk2.ops import cross_entropy
from openk2.ops.cross_entropy import linear_log_prob, reference_log_prob


@pytest.fixture(params=["kept", "made again"])
def probabilities(request, monkeypatch):
    """Both ways to the backward pass, with chunks that do not divide the rows."""
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 5)
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 0)
    if request.param == "made again":
        monkeypatch.setattr(cross_entropy, "KEEP_BYTES", 0)
    return request.param


@pytest.mark.parametrize("rows", [0, 1, 5, 13])
def test_log_probabilities_equal_their_twin(probabilities, rows):
    targets = torch.randint(11, (rows,))
    inputs = (draw(rows, 6, dtype=torch.float32), draw(11, 6, dtype=torch.float32))
    compare(
        lambda h, w: linear_log_prob(h, w, targets), lambda h, w: reference_log_prob(h, w, targets), inputs, rtol=2e-6
    )


def test_log_probabilities_without_gradient_and_with_frozen_parts(probabilities):
    targets = torch.randint(11, (13,))
    hidden, head = draw(13, 6, dtype=torch.float32), draw(11, 6, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(linear_log_prob(hidden, head, targets), reference_log_prob(hidden, head, targets))
    for h, w in ((hidden, head.detach()), (hidden.detach(), head)):
        leaf = h if h.requires_grad else w
        got = torch.autograd.grad(linear_log_prob(h, w, targets).square().sum(), leaf)[0]
        want = torch.autograd.grad(reference_log_prob(h, w, targets).square().sum(), leaf)[0]
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_log_probabilities_of_huge_logits_stay_finite(probabilities):
    hidden = torch.full((2, 4), 300.0, requires_grad=True)
    head = torch.stack((torch.ones(4), -torch.ones(4), torch.zeros(4))).requires_grad_()
    found = linear_log_prob(hidden, head, torch.tensor([0, 1]))
    assert found.tolist() == [0.0, -2400.0]
    found.sum().backward()
    assert bool(hidden.grad.isfinite().all()) and bool(head.grad.isfinite().all())


def test_log_probabilities_in_bf16(probabilities):
    targets = torch.randint(40, (13,))
    inputs = [torch.randn(13, 16).bfloat16().requires_grad_(), torch.randn(40, 16).bfloat16().requires_grad_()]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    got = linear_log_prob(*inputs, targets)
    want = F.linear(*wide).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    assert got.dtype == torch.float32
    weight = torch.rand(13)
    got_grads = torch.autograd.grad(got, inputs, weight)
    want_grads = torch.autograd.grad(want, wide, weight.double())
    for a, b in zip((got, *got_grads), (want, *want_grads), strict=True):
        assert relative_error(a, b) <= 4 * BF16_ROUNDING


def test_a_second_backward_is_refused_rather_than_wrong():
    """The kept probabilities are overwritten by the first."""
    hidden, head = draw(3, 6, dtype=torch.float32), draw(11, 6, dtype=torch.float32)
    total = linear_log_prob(hidden, head, torch.tensor([1, 2, 3])).sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
