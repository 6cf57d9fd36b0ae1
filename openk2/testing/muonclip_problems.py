"""What the MuonClip kit puts to an optimizer: problems, steps, and a reference written apart from `openk2.optim`.

The reference is in float64, with the Newton-Schulz polynomial applied to
singular values and QK-Clip head by head. It looks ahead as Moonlight does
(Nesterov), which K2's Algorithm 1 as printed does not; the kit takes either. Sources: K2 report (arXiv 2507.20534),
Algorithm 1 and section 2.1; Moonlight (arXiv 2502.16982), section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True)
class Attention:
    """One latent-attention layer: which parameters it uses, and what they are applied to.

    `query` names a parameter [H * (nope + rope), in], `key_value` one of [H * (nope + value), latent]; `rotary_key` is
    the parameter [rope, model] that all heads share. Inputs: `query_input` [N, in], `latent` [N, latent], `x` [N,
    model].
    """

    query: str
    key_value: str
    rotary_key: str
    num_heads: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    query_input: Tensor
    latent: Tensor
    x: Tensor

    def max_scores(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The largest causal softmax input of each head [H], from every score."""
        q = (self.query_input @ parameters[self.query].T).unflatten(1, (self.num_heads, -1))
        k = (self.latent @ parameters[self.key_value].T).unflatten(1, (self.num_heads, -1))[..., : self.nope_dim]
        rotary = self.x @ parameters[self.rotary_key].T
        scores = torch.einsum("qhn,khn->hqk", q[..., : self.nope_dim], k)
        scores = scores + torch.einsum("qhr,kr->hqk", q[..., self.nope_dim :], rotary)
        seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril()
        return (scores * (self.nope_dim + self.rope_dim) ** -0.5).masked_fill(~seen, -torch.inf).amax((1, 2))


@dataclass(frozen=True)
class Settings:
    """K2's names and defaults. `tau` None: no QK-Clip."""

    lr: float = 0.02
    weight_decay: float = 0.1
    momentum: float = 0.95
    ns_steps: int = 5
    nesterov: bool = True
    update_rms: float = 0.2
    tau: float | None = None


@dataclass(frozen=True)
class Problem:
    """What an optimizer is built over. `matrices` gives each parameter's (count, rows, columns)."""

    parameters: Mapping[str, Tensor]
    matrices: Mapping[str, tuple[int, int, int]]
    settings: Settings
    attention: tuple[Attention, ...] = ()


@dataclass(frozen=True)
class Micro:
    """One micro-batch: gradients by parameter, and the maximum scores [H] of each attention layer."""

    gradients: Mapping[str, Tensor]
    max_scores: Sequence[Tensor] = ()


Steps = Sequence[Sequence[Micro]]
Adapter = Callable[[Problem, Steps], Mapping[str, Tensor]]


def reference(problem: Problem, steps: Steps) -> dict[str, Tensor]:
    """Muon's steps in float64, each followed by QK-Clip where there is attention: an adapter like any other."""
    s = problem.settings
    values = {name: p.double() for name, p in problem.parameters.items()}
    momenta = {name: torch.zeros_like(p) for name, p in values.items()}
    for micros in steps:
        for name, (count, rows, columns) in problem.matrices.items():
            gradient = torch.stack([micro.gradients[name].double() for micro in micros]).sum(0)
            momenta[name] = s.momentum * momenta[name] + gradient
            ahead = gradient + s.momentum * momenta[name] if s.nesterov else momenta[name]
            ahead = ahead.view(count, rows, columns)
            update = torch.stack([_through_polynomial(one, s.ns_steps) for one in ahead]).view_as(gradient)
            scale = s.update_rms * math.sqrt(max(rows, columns))
            values[name] = values[name] * (1 - s.lr * s.weight_decay) - s.lr * scale * update
        for index, layer in enumerate(problem.attention if s.tau else ()):
            for head in range(layer.num_heads):
                largest = max(float(micro.max_scores[index][head]) for micro in micros)
                _shrink(layer, head, min(s.tau / largest, 1.0) if s.tau and largest > 0 else 1.0, values)
    return values


def _shrink(layer: Attention, head: int, gamma: float, values: Mapping[str, Tensor]) -> None:
    """sqrt(gamma) on a head's query and key rows, gamma on its rotary query rows, in place."""
    query, key = (values[name].unflatten(0, (layer.num_heads, -1))[head] for name in (layer.query, layer.key_value))
    query[: layer.nope_dim] *= gamma**0.5
    query[layer.nope_dim :] *= gamma
    key[: layer.nope_dim] *= gamma**0.5


def _through_polynomial(matrix: Tensor, steps: int) -> Tensor:
    u, singular, vt = torch.linalg.svd(matrix, full_matrices=False)
    if not singular.any():
        return torch.zeros_like(matrix)
    singular = singular / singular.norm()
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        singular = a * singular + b * singular**3 + c * singular**5
    return (u * singular) @ vt


def random_tensor(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrix_problem(*shape: int, **settings: float) -> Problem:
    """One parameter "weight": a matrix, or a stack of them."""
    count = shape[0] if len(shape) == 3 else 1
    matrices = (count, shape[-2], shape[-1])
    return Problem({"weight": random_tensor(*shape, seed=1)}, {"weight": matrices}, replace(Settings(), **settings))  # type: ignore[arg-type]


def random_steps(problem: Problem, count: int, *, micro_batches: int = 1, scale: float = 1.0) -> list[list[Micro]]:
    def gradients(seed: int) -> dict[str, Tensor]:
        return {name: random_tensor(*p.shape, seed=seed) * scale for name, p in problem.parameters.items()}

    return [[Micro(gradients(100 * step + micro + 2)) for micro in range(micro_batches)] for step in range(count)]


def attention_problem(tau_rank: int = 3) -> tuple[Problem, list[Attention]]:
    """Two layers of four heads, learning rate 0, and tau between the heads' maxima over two batches of inputs.

    Returns the problem with the first batch of inputs in it and the layers on the second one.
    """
    heads, nope, rope, value, rank, width = 4, 6, 4, 5, 8, 10
    parameters: dict[str, Tensor] = {}
    first: list[Attention] = []
    second: list[Attention] = []
    for layer in range(2):
        names = [f"layers.{layer}.{part}" for part in ("query", "key_value", "rotary_key")]
        shapes = ((heads * (nope + rope), rank), (heads * (nope + value), rank), (rope, width))
        for index, (name, shape) in enumerate(zip(names, shapes, strict=True)):
            parameters[name] = random_tensor(*shape, seed=10 * layer + index)
        for seed, layers in ((50, first), (60, second)):
            inputs = [random_tensor(12, size, seed=seed + layer * 3 + i) for i, size in enumerate((rank, rank, width))]
            query, key_value, rotary_key = names
            x_query, latent, x = inputs
            layers.append(Attention(query, key_value, rotary_key, heads, nope, rope, value, x_query, latent, x))
    maxima = torch.cat([larger_maxima(a, b, parameters) for a, b in zip(first, second, strict=True)])
    tau = float(maxima.sort().values[tau_rank : tau_rank + 2].mean())
    matrices = {name: (1, *p.shape) for name, p in parameters.items()}
    settings = replace(Settings(), lr=0.0, weight_decay=0.0, tau=tau)
    return Problem(parameters, matrices, settings, tuple(first)), second  # type: ignore[arg-type]


def moving_problem() -> tuple[Problem, list[list[Micro]]]:
    """The problem of `attention_problem` at a rate that moves the weights far, and two steps; without momentum."""
    problem, second = attention_problem()
    problem = replace(problem, settings=replace(problem.settings, lr=2.0, momentum=0.0))
    steps = random_steps(problem, 2)
    for micros, batch in zip(steps, (problem.attention, second), strict=True):
        micros[0] = replace(micros[0], max_scores=[layer.max_scores(problem.parameters) for layer in batch])
    return problem, steps


def larger_maxima(one: Attention, other: Attention, parameters: Mapping[str, Tensor]) -> Tensor:
    return torch.maximum(one.max_scores(parameters), other.max_scores(parameters))


def clip_steps(problem: Problem, *batches: Sequence[Attention]) -> list[list[Micro]]:
    zero = {name: torch.zeros_like(p) for name, p in problem.parameters.items()}
    return [[Micro(zero, [layer.max_scores(problem.parameters) for layer in batch]) for batch in batches]]


def problems() -> list[tuple[str, str, Problem, Steps]]:
    """What `same` compares on."""
    plain, stack = matrix_problem(12, 20), matrix_problem(4, 16, 8)
    clipped, second = attention_problem()
    return [
        ("muon", "steps on a matrix", plain, random_steps(plain, 3)),
        ("stacks", "steps on a stack", stack, random_steps(stack, 3)),
        ("clip", "clipped weights", clipped, clip_steps(clipped, clipped.attention, second)),
    ]
