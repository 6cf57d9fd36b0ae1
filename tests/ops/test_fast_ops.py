"""Each fast operation against its slow twin: forward, gradients, and the bf16 error that its rounding allows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from openk2.ops import attention, cross_entropy, experts
from openk2.ops.attention import QUERY_BLOCK, document_attention, exact_peak_scores, reference_attention
from openk2.ops.cross_entropy import linear_log_prob, reference_log_prob
from openk2.ops.experts import reference_experts, routed_experts
from openk2.ops.fused import rms_norm, swiglu_backward, swiglu_forward, swiglu_mlp

BF16_ROUNDING = 2.0**-8  # relative, half a unit in the last of 8 significant bits


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def random_starts(batch: int, length: int) -> torch.Tensor:
    """Documents of random lengths, different in each row; row 0 is one document."""
    begins = torch.rand(batch, length) < 3 / length
    begins[:, 0], begins[0, 1:] = True, False
    index = torch.arange(length).expand(batch, length)
    return torch.where(begins, index, 0).cummax(1).values


def relative_error(got: torch.Tensor, want: torch.Tensor, floor: float = 0.0) -> float:
    """|got - want| / |want| in fp64, or by `floor` if that is larger; 0 where both are empty or zero."""
    error = float((got.detach().double() - want.detach().double()).norm())
    return error / max(float(want.detach().double().norm()), floor) if error else 0.0


def compare(fast, slow, inputs, *, rtol: float, floor: float = 0.0) -> None:
    """Outputs and the gradients of a random projection of them, as relative norms."""
    got, want = fast(*inputs), slow(*inputs)
    weight = torch.randn_like(want)
    differentiable = [x for x in inputs if x.requires_grad]
    got_grads = torch.autograd.grad((got * weight).sum(), differentiable)
    want_grads = torch.autograd.grad((want * weight).sum(), differentiable)
    for a, b in zip((got, *got_grads), (want, *want_grads), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert relative_error(a, b, floor) <= rtol


# --- attention ---


@pytest.mark.parametrize("length", [1, 7, QUERY_BLOCK - 1, QUERY_BLOCK, QUERY_BLOCK + 1, 2 * QUERY_BLOCK + 3])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("how", ["kept", "made again", "blocks of keys"])
def test_attention_equals_its_twin(length, dtype, rtol, how, monkeypatch):
    if how != "kept":
        monkeypatch.setattr(attention, "KEPT_BYTES", 0)
    if how == "blocks of keys":
        monkeypatch.setattr(attention, "KEY_BLOCK", 64)
    q, k, v = draw(2, 2, length, 6, dtype=dtype), draw(2, 2, length, 6, dtype=dtype), draw(2, 2, length, 5, dtype=dtype)
    starts = random_starts(2, length)
    compare(
        lambda q, k, v: document_attention(q, k, v, starts, 0.7)[0],
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
    scores = sum(tile.num_scores for tiles in attention._tiles(starts, 2) for tile in tiles)
    found = []
    for kept_bytes in (8 * scores, 8 * scores - 1):
        monkeypatch.setattr(attention, "KEPT_BYTES", kept_bytes)
        computed.clear()
        out = document_attention(q, k, v, starts, 0.5)[0]
        tiles = len(computed)
        found.append(torch.autograd.grad(out.sum(), (q, k, v)))
        assert len(computed) == (tiles if kept_bytes == 8 * scores else 2 * tiles)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("key_block", [attention.KEY_BLOCK, 2])
def test_attention_gradcheck(key_block, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
    monkeypatch.setattr(attention, "KEY_STEP", 2)
    monkeypatch.setattr(attention, "KEY_BLOCK", key_block)
    starts = torch.tensor([[0, 0, 0, 3, 3, 3, 3, 7, 7, 7]])
    inputs = (draw(1, 2, 10, 3), draw(1, 2, 10, 3), draw(1, 2, 10, 4))
    assert torch.autograd.gradcheck(lambda q, k, v: document_attention(q, k, v, starts, 0.5)[0], inputs)


def test_attention_never_looks_ahead_or_into_another_document(monkeypatch):
    """What is hidden may hold anything, even values that would dominate, and gets no gradient."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
    starts = torch.tensor([[0, 0, 0, 0, 0, 5, 5, 5, 5, 5, 5]])
    q, k, v = draw(1, 2, 11, 4), draw(1, 2, 11, 4), draw(1, 2, 11, 4)
    out, _ = document_attention(q, k, v, starts, 1.0)
    grad_k, grad_v = torch.autograd.grad(out[:, :, 5:8].sum(), (k, v))
    assert not grad_k[:, :, :5].any() and not grad_k[:, :, 8:].any()
    assert not grad_v[:, :, :5].any() and not grad_v[:, :, 8:].any()
    loud_k, loud_v = k.detach().clone(), v.detach().clone()
    for t in (*range(5), *range(8, 11)):
        loud_k[:, :, t], loud_v[:, :, t] = 1e3, 1e6
    again, _ = document_attention(q, loud_k, loud_v, starts, 1.0)
    assert torch.equal(out[:, :, 5:8], again[:, :, 5:8])


def test_earlier_documents_cost_nothing():
    """A row of many documents computes little more than its documents' own scores, whatever the other row holds."""
    length, documents = 8 * QUERY_BLOCK, 16
    starts = torch.zeros(2, length, dtype=torch.int32)
    starts[1] = torch.arange(length) // (length // documents) * (length // documents)
    tiles = [tile for tiles in attention._tiles(starts, heads=3) for tile in tiles]
    area = [0, 0]
    for tile in tiles:
        for row in range(tile.rows.start, tile.rows.stop):
            area[row] += (tile.last - tile.first) * (tile.high - tile.low)
    assert area[0] == QUERY_BLOCK**2 * 36  # whole blocks below and on the diagonal of 8 x 8
    assert area[1] <= QUERY_BLOCK**2 * 8


@pytest.mark.parametrize("length", [5, QUERY_BLOCK + 9])
def test_maximum_scores_are_those_of_the_explicit_matrix(length):
    """fp32 inputs: the same maxima, signed, hidden scores left out; bf16 inputs: within the rounding."""
    starts = random_starts(3, length)
    q, k, v = (torch.randn(3, 2, length, 8) for _ in range(3))
    q[:, 1] = -q[:, 1].abs()
    k[:, 1] = k[:, 1].abs()  # every score of head 1 is negative: a maximum that started at 0 would hide them
    explicit = reference_attention(q.double(), k.double(), v.double(), starts, 0.3)[1]
    assert bool((explicit[:, 1] < 0).all())
    for found in (document_attention(q, k, v, starts, 0.3)[1], exact_peak_scores(q, k, starts, 0.3)):
        torch.testing.assert_close(found, explicit.float(), rtol=1e-6, atol=1e-6)

    q16, k16, v16 = q.bfloat16(), k.bfloat16(), v.bfloat16()
    exact = exact_peak_scores(q16, k16, starts, 0.3)
    explicit = reference_attention(q16.double(), k16.double(), v16.double(), starts, 0.3)[1]
    torch.testing.assert_close(exact, explicit.float(), rtol=1e-6, atol=1e-6)
    rounded = document_attention(q16, k16, v16, starts, 0.3)[1]
    assert rounded.dtype == torch.float32
    assert bool(((rounded - exact).abs() <= BF16_ROUNDING * exact.abs()).all())


def test_attention_in_bf16_is_as_near_as_bf16_allows():
    starts = random_starts(2, 300)
    inputs = [torch.randn(2, 2, 300, 16).bfloat16().requires_grad_() for _ in range(3)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    out, _ = document_attention(*inputs, starts, 0.25)
    want, _ = reference_attention(*wide, starts, 0.25)
    weight = torch.randn_like(want)
    got_grads = torch.autograd.grad(out, inputs, weight.bfloat16())
    want_grads = torch.autograd.grad(want, wide, weight.bfloat16().double())
    for a, b in zip((out, *got_grads), (want, *want_grads), strict=True):
        assert a.dtype == torch.bfloat16
        assert relative_error(a, b) <= 3 * BF16_ROUNDING


# --- experts ---


def expert_inputs(tokens: int, experts: int, top_k: int, dtype: torch.dtype):
    x, gate_up, down = (
        draw(tokens, 8, dtype=dtype),
        draw(experts, 32, 8, dtype=dtype),
        draw(experts, 8, 16, dtype=dtype),
    )
    weights = torch.rand(
        tokens, top_k, dtype=torch.float64 if dtype == torch.float64 else torch.float32
    ).requires_grad_()
    return x, weights, gate_up, down


ROUTINGS = {
    "spread": lambda: torch.rand(40, 6).topk(3).indices,
    "some experts empty": lambda: torch.rand(40, 2).topk(2).indices * 4 + 1,
    "one token": lambda: torch.tensor([[4, 2]]),
    "all to one": lambda: torch.full((9, 1), 3),
    "all to the last": lambda: torch.full((9, 1), 5),
    "no token": lambda: torch.zeros(0, 2, dtype=torch.int64),
    "blocks of 32": lambda: (torch.rand(1100, 6) * torch.linspace(0.2, 1, 6)).topk(3).indices,
}


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_experts_equal_their_twin(routing, dtype, rtol):
    chosen = ROUTINGS[routing]()
    x, weights, gate_up, down = expert_inputs(len(chosen), 6, chosen.shape[1], dtype)
    for regather in (False, True):
        compare(
            lambda x, w, g, d, regather=regather: routed_experts(x, chosen, w, g, d, regather=regather),
            lambda x, w, g, d: reference_experts(x, chosen, w, g, d),
            (x, weights, gate_up, down),
            rtol=rtol,
        )
    (routed_experts(x, chosen, weights, gate_up, down).sum()).backward()
    idle = sorted(set(range(6)) - set(chosen.flatten().tolist()))
    assert not gate_up.grad[idle].any() and not down.grad[idle].any()


def test_experts_gradcheck():
    chosen = torch.tensor([[0, 2], [2, 3], [0, 3]])
    x, weights, gate_up, down = draw(3, 3), torch.rand(3, 2).double().requires_grad_(), draw(4, 4, 3), draw(4, 3, 2)
    assert torch.autograd.gradcheck(lambda x, w, g, d: routed_experts(x, chosen, w, g, d), (x, weights, gate_up, down))


def test_products_of_experts_come_in_few_sizes(monkeypatch):
    """A size never met before is compiled first: rows are filled up to blocks, as many whatever the routing."""
    sizes, grouped, chosen = [], experts._grouped, ROUTINGS["blocks of 32"]()
    monkeypatch.setattr(experts, "_grouped", lambda rows, w, ends: sizes.append(ends) or grouped(rows, w, ends))
    x, weights, gate_up, down = expert_inputs(1100, 6, 3, torch.float32)
    routed_experts(x, chosen, weights, gate_up, down)
    assert not (sizes[0] % 32).any()
    assert sizes[0][-1] == (3300 + 6 * 31) // 32 * 32


@pytest.mark.parametrize(("pairs", "num_experts", "block"), [(0, 8, 1), (4, 16, 1), (1024, 16, 8), (16384, 16, 32)])
def test_a_block_is_at_most_an_eighth_of_an_experts_rows(pairs, num_experts, block):
    assert experts._row_block(pairs, num_experts) == block


@pytest.mark.parametrize("routing", [name for name in ROUTINGS if name != "no token"])
def test_experts_in_bf16_are_as_near_as_bf16_allows(routing):
    """The grouped kernel takes this path only in bf16; expert widths are multiples of 8 as it asks."""
    chosen = ROUTINGS[routing]()
    x, weights, gate_up, down = expert_inputs(len(chosen), 6, chosen.shape[1], torch.float32)
    inputs = [x.detach().bfloat16(), weights.detach(), gate_up.detach().bfloat16(), down.detach().bfloat16()]
    wide = [t.double().requires_grad_() for t in inputs]
    inputs = [t.requires_grad_() for t in inputs]
    out = routed_experts(inputs[0], chosen, *inputs[1:])
    want = reference_experts(wide[0], chosen, *wide[1:])
    weight = torch.randn_like(want).bfloat16()
    got_grads = torch.autograd.grad(out, inputs, weight)
    want_grads = torch.autograd.grad(want, wide, weight.double())
    assert got_grads[1].dtype == torch.float32
    for index, (a, b) in enumerate(zip((out, *got_grads), (want, *want_grads), strict=True)):
        # A weight's gradient is a sum that may cancel: with one token nothing averages its error out.
        allowed = 16 if index == 2 and len(chosen) == 1 else 4
        assert relative_error(a, b) <= allowed * BF16_ROUNDING


# --- log-probabilities ---


@pytest.fixture(params=["kept", "made again"])
def probabilities(request, monkeypatch):
    """Both ways to the backward pass, with chunks that do not divide the rows."""
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 5)
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


# --- norms and activations ---


def plain_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def test_rms_norm_gradcheck_and_twin():
    inputs = (draw(6, 5), draw(5))
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-3), inputs)
    compare(lambda x, w: rms_norm(x, w, 1e-3), lambda x, w: plain_rms_norm(x, w, 1e-3), inputs, rtol=1e-13)
    single = (draw(7, 64, dtype=torch.float32), draw(64, dtype=torch.float32))
    compare(lambda x, w: rms_norm(x, w, 1e-6), lambda x, w: plain_rms_norm(x, w, 1e-6), single, rtol=1e-6)


def test_rms_norm_in_bf16_computes_in_fp32():
    x = (torch.randn(50, 512) * 30).bfloat16().requires_grad_()
    weight = torch.rand(512).requires_grad_()  # an fp32 master weight
    wide, wide_weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    out, want = rms_norm(x, weight, 1e-6), plain_rms_norm(wide, wide_weight, 1e-6)
    assert out.dtype == torch.bfloat16
    assert bool(((out.double() - want).abs() <= 1.001 * BF16_ROUNDING * want.abs() + 1e-30).all())
    grad = torch.randn_like(want).bfloat16()
    got = torch.autograd.grad(out, (x, weight), grad)
    expected = torch.autograd.grad(want, (wide, wide_weight), grad.double())
    assert got[0].dtype == torch.bfloat16 and got[1].dtype == torch.float32
    assert relative_error(got[0], expected[0]) <= BF16_ROUNDING
    assert relative_error(got[1], expected[1]) <= 1e-5


def test_swiglu_and_mlp():
    x, gate_up, down = draw(5, 3), draw(8, 3), draw(3, 4)
    assert torch.autograd.gradcheck(swiglu_mlp, (x, gate_up, down))

    def plain(x, gate_up, down):
        gate, up = (x @ gate_up.t()).split(4, dim=-1)
        return (gate * gate.sigmoid() * up) @ down.t()

    compare(swiglu_mlp, plain, (x, gate_up, down), rtol=1e-13)


def test_swiglu_of_extreme_gates_is_finite():
    """Where exp(-gate) overflows the value and both gradients are those of the limit."""
    gate_up = torch.tensor([[-200.0, 200.0, 0.0, 3.0, 5.0, 7.0]])
    assert swiglu_forward(gate_up).tolist() == [[0.0, 1000.0, 0.0]]
    assert swiglu_backward(torch.ones(1, 3), gate_up)[0].tolist() == [[0.0, 5.0, 3.5, 0.0, 200.0, 0.0]]
