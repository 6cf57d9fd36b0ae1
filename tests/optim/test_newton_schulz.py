"""Newton-Schulz against the singular value decomposition, and the scale of Muon's update."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from openk2.optim.muon import momentum_, newton_schulz, orthogonalise, update_scale

SHAPES = {"square": (24, 24), "tall": (40, 16), "wide": (16, 40), "vector": (1, 20)}
BAND = (0.67, 1.15)  # Keller Jordan's coefficients, for singular values above 0.005 of the norm: 0.68 to 1.15


def matrix(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A matrix with singular values from 1 down to 0.1, and its U, s, V^T."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(rows, columns)
    u = torch.linalg.qr(torch.randn(rows, rank, generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, rank, generator=generator, dtype=torch.float64))[0]
    s = torch.logspace(0, -1, rank, dtype=torch.float64)
    return ((u * s) @ v.t()).float(), u, s, v.t()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)], ids=["fp32", "bf16"])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape, dtype, tolerance):
    given, u, _, vt = matrix(*shape)
    found = newton_schulz(given[None], 5, dtype)
    assert found.dtype == dtype and found.shape == (1, *shape)
    seen = u.t() @ found[0].double() @ vt.t()  # in the matrix's own singular vectors: diagonal if the direction is kept
    low, high = BAND
    assert bool((seen.diagonal() > low - tolerance).all() and (seen.diagonal() < high + tolerance).all())
    assert float((seen - seen.diagonal().diag()).abs().max()) < tolerance
    # Nothing outside the two subspaces.
    assert float((found[0].double() - u @ seen @ vt).abs().max()) < tolerance


def test_more_steps_of_the_polynomial_are_what_is_applied():
    """Each singular value goes through a s + b s^3 + c s^5, `steps` times, after division by the Frobenius norm."""
    given, u, s, vt = matrix(12, 20)
    for steps in (1, 3):
        expected = s / s.norm()
        for _ in range(steps):
            expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
        found = newton_schulz(given[None], steps, torch.float32)[0].double()
        torch.testing.assert_close((u.t() @ found @ vt.t()).diagonal(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-30, 1e-10, 1e-5, 1e5, 1e30])
def test_the_gradients_size_does_not_matter(factor):
    given = matrix(16, 24)[0]
    plain = newton_schulz(given[None], 5, torch.float32)
    torch.testing.assert_close(newton_schulz(given[None] * factor, 5, torch.float32), plain, rtol=1e-3, atol=1e-3)
    assert torch.isfinite(newton_schulz(given[None] * factor, 5)).all()


def test_a_zero_matrix_stays_zero_and_harms_no_neighbour():
    given = matrix(8, 12)[0]
    stack = torch.stack((torch.zeros(8, 12), given, given * 1e-30))
    found = newton_schulz(stack, 5, torch.float32)
    assert not found[0].any()
    torch.testing.assert_close(found[1], newton_schulz(given[None], 5, torch.float32)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[2], found[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(6, 20, 12), (6, 12, 20)], ids=["tall", "wide"])
def test_a_stack_is_its_matrices_one_by_one(shape):
    """Bound for fp32 products whose order of summation may differ between batch sizes."""
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 6)[:, None, None]
    together = newton_schulz(stack, 5, torch.float32)
    apart = torch.cat([newton_schulz(one[None], 5, torch.float32) for one in stack])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_update_scale_gives_adams_root_mean_square():
    """A matrix with orthonormal rows has RMS 1 / sqrt(longer side), so the scaled update has exactly `update_rms`."""
    for rows, columns in ((16, 64), (64, 16), (20, 20)):
        assert update_scale(rows, columns, 0.2) == pytest.approx(0.2 * math.sqrt(max(rows, columns)))
        exact = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), dtype=torch.float64))[0]
        assert float(exact.square().mean().sqrt()) * update_scale(rows, columns, 0.2) == pytest.approx(0.2)


def test_nesterov_looks_ahead():
    momentum, gradient = torch.tensor([1.0, 2.0]), torch.tensor([10.0, -4.0])
    ahead = momentum_(momentum, gradient, 0.5, True)
    assert momentum.tolist() == [10.5, -3.0] and ahead.tolist() == [15.25, -5.5] and gradient.tolist() == [10.0, -4.0]


def test_momentum_without_look_ahead_is_a_copy():
    """What goes into Newton-Schulz must not share the state's memory (pytorch issue 190597)."""
    momentum, gradient = torch.tensor([1.0, 2.0]), torch.tensor([10.0, -4.0])
    moved = momentum_(momentum, gradient, 0.5, False)
    assert moved.tolist() == momentum.tolist() == [10.5, -3.0]
    moved.zero_()
    assert momentum.tolist() == [10.5, -3.0]


@pytest.mark.parametrize("shape", [(3, 16, 48), (3, 48, 16), (2, 32, 64), (2, 20, 20)], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_the_gram_iteration_is_the_published_one(shape, steps):
    """In fp32 to rounding; in bf16 both stay near the polynomial of the singular values."""
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    fast, slow = orthogonalise(stack, steps, torch.float32), newton_schulz(stack, steps, torch.float32)
    torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-4)
    rounded = orthogonalise(stack, steps).float()
    assert float((rounded - slow).norm() / slow.norm()) < 0.04


def test_the_gram_iteration_stands_what_newton_schulz_stands():
    """Nearly dependent rows, an empty matrix among others, sizes far apart."""
    generator = torch.Generator().manual_seed(2)
    thin = torch.randn(16, 2, generator=generator) @ torch.randn(2, 64, generator=generator)
    stack = torch.stack((thin + 1e-4 * torch.randn(16, 64, generator=generator), torch.zeros(16, 64), thin * 1e-20))
    found = orthogonalise(stack, 5)
    assert torch.isfinite(found).all() and not found[1].any()
    assert float(torch.linalg.matrix_norm(found.float(), ord=2).max()) < 1.3
