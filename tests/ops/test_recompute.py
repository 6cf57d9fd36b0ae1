"""What is made again: bits, how often, and what autograd holds in the meantime."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openk2.ops.fused import rms_norm
from openk2.ops.recompute import Recompute


class Counted:
    """A function, how often it ran, and which of its results live."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0
        self.results: list[weakref.ref[Tensor]] = []

    def __call__(self, *inputs: Any) -> Any:
        self.calls += 1
        result = self.function(*inputs)
        for tensor in result if isinstance(result, tuple) else (result,):
            self.results.append(weakref.ref(tensor.untyped_storage()))
        return result

    @property
    def alive(self) -> int:
        gc.collect()
        return sum(result() is not None for result in self.results)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


def gradients(enabled: bool) -> tuple[tuple[Tensor, ...], Counted, Counted]:
    """Of a norm read twice, a projection of it cut in two parts, and a product of both."""
    x, weight, up = draw(6, 8), draw(8), draw(10, 8)
    norm = Counted(lambda x: rms_norm(x, weight, 1e-6))
    split = Counted(lambda y: tuple(part.contiguous() for part in F.linear(y, up).chunk(2, dim=-1)))
    with Recompute(enabled) as again:
        y = again(norm, x)
        left, right = again(split, y)
        out = (left * right.view(5, 6).t()).sum() + y.square().sum()
        del y, left, right
    assert (norm.alive + split.alive == 0) == enabled
    found = torch.autograd.grad(out, (x, weight, up))
    return found, norm, split


def test_gradients_have_the_same_bits_and_each_result_is_made_again_once():
    kept, _, _ = gradients(enabled=False)
    again, norm, split = gradients(enabled=True)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    assert norm.calls == split.calls == 2
    assert norm.alive == split.alive == 0  # nobody needs them any more


def test_a_second_backward_pass_makes_them_once_more():
    """And between the two nothing is held, though the graph lives on."""
    x = draw(6, 8)
    square = Counted(torch.square)
    with Recompute() as again:
        y = again(square, x)
        out = y.exp().mul(y).sum()
        del y
    first = torch.autograd.grad(out, x, retain_graph=True)[0]
    assert square.calls == 2 and square.alive == 0
    assert torch.equal(first, torch.autograd.grad(out, x)[0])


def test_memory_used_again_is_not_taken_for_a_result():
    """A result that died leaves its address to another tensor, which must be kept as it is."""
    x = draw(64, 64)
    with Recompute() as again:
        for _ in range(20):
            again(torch.neg, x)  # dies at once
            other = x * 2  # may lie where it lay
            assert torch.equal(torch.autograd.grad((other.exp()).sum(), x)[0], other.exp() * 2)


def test_an_error_in_the_forward_pass_ends_the_hooks():
    with pytest.raises(RuntimeError, match="stop"), Recompute():
        raise RuntimeError("stop")
    x = draw(3)
    saved = x.exp()
    assert torch.equal(torch.autograd.grad(saved.sum(), x)[0], saved)


def test_empty_results_are_not_taken_for_each_other():
    """Empty tensors share an address, none: what autograd keeps of one must not be made by another's function."""
    x = draw(4, 8)
    with Recompute() as again:
        nothing = again(torch.square, x[:0])
        out = x.square().index_select(0, torch.zeros(0, dtype=torch.int64)).sum() + nothing.sum()
    assert torch.equal(torch.autograd.grad(out, x)[0], torch.zeros(4, 8))
