"""The routed experts against its slow twin: forward, gradients, and the bf16 error that its rounding allows."""

from __future__ import annotations

import pytest
import torch
from twins import BF16_ROUNDING, compare, draw, relative_error

from openk2.ops import experts
from openk2.ops.experts import reference_experts, routed_experts


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
