"""Every backend sees the same tokens, gives the same gradients, and bounds the true largest scores."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openk2.config.run import TrainConfig
from openk2.ops.attention import Tiling, exact_peaks, reference_attention
from openk2.ops.attention_backends import BACKENDS, choose_backend

DIFFERENTIABLE = ["tiled", "sdpa", "invariant"]  # on the CPU
SCALE = 0.4


def starts_of(rows: list[list[int]], length: int) -> torch.Tensor:
    """First positions by document, of rows given as the places where documents begin."""
    places = torch.arange(length)
    return torch.stack([(places * torch.isin(places, torch.tensor(row))).cummax(0).values for row in rows])


PACKINGS = {
    "whole rows": starts_of([[0], [0]], 40),
    "alike": starts_of([[0, 9, 10], [0, 9, 10]], 40),
    "different": starts_of([[0, 17], [0, 1, 2, 39]], 40),
    "padded": starts_of([[0, *range(20, 40)], [0, *range(7, 40)]], 40),
}


def tensors(dtype: torch.dtype, size: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 40, 16), (2, 3, 40, 16), (2, 3, 40, 12))
    return [(torch.randn(shape, generator=generator) * size).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("frugal", [False, True])
def test_outputs_and_gradients_are_those_of_explicit_attention(name, packing, frugal):
    starts, inputs, backend = PACKINGS[packing], tensors(torch.float32), BACKENDS[name]
    out, peaks = backend.attend(*inputs, backend.prepare(Tiling(starts), frugal=frugal), SCALE)
    want, largest = reference_attention(*inputs, starts, SCALE)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(want)
    for got, wanted in zip(
        torch.autograd.grad(out, inputs, weight), torch.autograd.grad(want, inputs, weight), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert not peaks.requires_grad
    assert bool((backend.bound(peaks, torch.float32) >= largest - 1e-6).all())


@pytest.mark.parametrize("packing", PACKINGS)
def test_flex_forward(packing):
    starts, backend = PACKINGS[packing], BACKENDS["flex"]
    inputs = [x.detach() for x in tensors(torch.float32)]
    with torch.no_grad():
        out, peaks = backend.attend(*inputs, backend.prepare(Tiling(starts), frugal=False), SCALE)
        want, largest = reference_attention(*inputs, starts, SCALE)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
    assert bool((backend.bound(peaks, torch.float32) >= largest).all())


def test_padding_is_one_span():
    """Each padding token is a document of its own; a kernel for each would take longer than the text."""
    prepared = BACKENDS["sdpa"].prepare(Tiling(PACKINGS["padded"]), frugal=False)
    assert [[(span.first, span.last) for span in spans] for spans in prepared] == [
        [(0, 20), (20, 40)],
        [(0, 7), (7, 40)],
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BACKENDS)
def test_nothing_visible_has_no_bound(name, dtype):
    """A micro-batch of padding alone leaves the other micro-batches' bounds as they are."""
    nothing = torch.tensor([-torch.inf, 3.0, -torch.inf])
    bounds = BACKENDS[name].bound(nothing, dtype)
    assert bounds[[0, 2]].tolist() == [-torch.inf] * 2 and 3.0 <= float(bounds[1]) < 3.1


def test_flex_refuses_to_train_on_the_cpu():
    backend = BACKENDS["flex"]
    prepared = backend.prepare(Tiling(PACKINGS["alike"]), frugal=False)
    with pytest.raises(ValueError, match="no backward pass; expected tiled or sdpa"):
        backend.attend(*tensors(torch.float32), prepared, SCALE)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(size=st.floats(0.01, 12.0), seed=st.integers(0, 10**6), begins=st.sets(st.integers(1, 39), max_size=5))
@settings(max_examples=40, deadline=None)
def test_bounds_hold_whatever_the_scores(name, dtype, size, seed, begins):
    """At logits from next to nothing to some thousands the bound is never below the true maximum, and near it."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = ((torch.randn(1, 2, 40, 16, generator=generator) * size).to(dtype) for _ in range(3))
    starts, backend = starts_of([[0, *sorted(begins)]], 40), BACKENDS[name]
    _, peaks = backend.attend(q, k, v, backend.prepare(Tiling(starts), frugal=False), SCALE)
    bounds = backend.bound(peaks.amax((0, 2)), dtype)
    explicit = reference_attention(q.double(), k.double(), v.double(), starts, SCALE)[1].amax((0, 2))
    exact = exact_peaks(q, k, Tiling(starts), SCALE).amax((0, 2))
    torch.testing.assert_close(exact.double(), explicit, rtol=1e-6, atol=1e-5)
    assert bool((bounds >= exact).all())
    room = 40 if name == "sdpa" else 1e-6  # a log-sum-exp exceeds the maximum by log of the row's length at most
    slack = torch.log(torch.tensor(float(room))) if name == "sdpa" else torch.tensor(1e-5)
    assert bool((bounds <= explicit + slack + 0.01 * explicit.abs() + 1e-3).all())


def test_auto_takes_what_can_be_trained_with():
    assert choose_backend("auto", torch.device("cpu")) == "tiled"
    assert choose_backend("auto", torch.device("cuda")) == "flex"
    assert choose_backend("sdpa", torch.device("cpu")) == "sdpa"
    with pytest.raises(ValueError, match="saw 'fast', expected auto, tiled, flex, sdpa, invariant"):
        choose_backend("fast", torch.device("cpu"))


def test_the_config_offers_what_there_is():
    """Configs know no torch, so they name the backends for themselves."""
    (choices,) = (entry.metadata["choices"] for entry in dataclasses.fields(TrainConfig) if entry.name == "attention")
    assert choices == ("auto", *BACKENDS)
