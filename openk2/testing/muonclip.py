"""Is it MuonClip? Golden steps and invariants for any optimizer that says so.

    from openk2.testing.muonclip import check, table
    print(table(check(my_adapter)))

An adapter is a function (problem, steps) -> parameters after the steps. It
builds the optimizer under test over copies of `problem.parameters`, cut into the
matrices that `problem.matrices` names, and takes one optimizer step for each of
`steps`, which come as one or more micro-batches: their gradients add up, and
their attention maxima go to QK-Clip. Nothing else is asked of it, so the
optimizer may be sharded, compiled or written in another language.

`python -m openk2.testing.muonclip` prints the table of our optimizer, of torch's
Muon on the part that it has, and of four that are wrong on purpose.

The problems and the reference, written apart from `openk2.optim`, are in
`muonclip_problems`. Left out: AdamW's part, for which torch's own is the reference.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from openk2.observe.files import write_atomic
from openk2.testing.muonclip_problems import (
    Adapter,
    Micro,
    Problem,
    Steps,
    attention_problem,
    clip_steps,
    larger_maxima,
    matrix_problem,
    moving_problem,
    problems,
    random_steps,
    random_tensor,
    reference,
)

PARTS = ("muon", "stacks", "guards", "accumulation", "clip")
TOLERANCE = 0.05  # of an update's length: bf16 products, whose rounding the iteration enlarges
EXACT = 1e-5  # of what is computed in fp32


@dataclass(frozen=True)
class Finding:
    """One check. `saw` is the figure against `limit`; `why` says what the failure looks like."""

    part: str
    name: str
    saw: float
    limit: float
    why: str = ""

    @property
    def passed(self) -> bool:
        return self.saw <= self.limit  # never true of nan


def check(adapter: Adapter, parts: Iterable[str] = PARTS) -> list[Finding]:
    """Every check of the parts that the optimizer claims to have; an error of the adapter's is a failed check."""
    parts = [parts] if isinstance(parts, str) else list(parts)
    unknown = set(parts) - set(PARTS)
    if unknown or not parts:
        seen = repr(min(unknown)) if unknown else "none"
        raise ValueError(f"parts: saw {seen}, expected some of {', '.join(PARTS)}")
    return [run(adapter) for part in parts for run in _CHECKS[part]]


class Measured(NamedTuple):
    """What a check found; see `Finding`."""

    saw: float
    limit: float
    why: str


_CHECKS: dict[str, list[Callable[[Adapter], Finding]]] = {part: [] for part in PARTS}


def _check(part: str, name: str) -> Callable[[Callable[[Adapter], Measured]], Callable[[Adapter], Finding]]:
    """One of the part's checks, in the order in which they stand below."""

    def register(measure: Callable[[Adapter], Measured]) -> Callable[[Adapter], Finding]:
        def run(adapter: Adapter) -> Finding:
            try:
                return Finding(part, name, *measure(adapter))
            except Exception as error:  # the optimizer under test may do anything
                return Finding(part, name, math.nan, 0.0, f"{type(error).__name__}: {error}")

        _CHECKS[part].append(run)
        return run

    return register


def same(adapter: Adapter, other: Adapter) -> list[Finding]:
    """Whether two ways to run one optimizer agree, for instance sharded and whole: all problems, to rounding, which
    Newton-Schulz in bf16 enlarges."""
    found = []
    for part, name, problem, steps in problems():
        left, right = adapter(problem, steps), other(problem, steps)
        distance = _worst(
            _relative(left[key] - right[key], right[key] - start) for key, start in problem.parameters.items()
        )
        limit = EXACT if problem.attention else TOLERANCE
        found.append(Finding(part, f"the same {name}", distance, limit, "the two ways to run it take different steps"))
    return found


def table(findings: Sequence[Finding]) -> str:
    """One line a check."""
    lines = []
    for finding in findings:
        verdict = "pass" if finding.passed else "FAIL"
        why = "" if finding.passed or not finding.why else f"  {finding.why}"
        lines.append(
            f"{verdict}  {finding.part:<12}  {finding.name:<52} {finding.saw:9.2e} of {finding.limit:.0e}{why}"
        )
    return "\n".join(lines)


def _relative(difference: Tensor, moved: Tensor) -> float:
    return float(difference.double().norm() / moved.double().norm().clamp(min=1e-30))


def _worst(distances: Iterable[float]) -> float:
    """The largest, and nan if there is one: Python's max would pass over it."""
    return float(torch.tensor(list(distances), dtype=torch.float64).max())


def _update(adapter: Adapter, problem: Problem, steps: Steps) -> Tensor:
    return adapter(problem, steps)["weight"].double() - problem.parameters["weight"].double()


@_check("muon", "the update is orthogonal")
def _directions(adapter: Adapter) -> Measured:
    """One step without momentum or decay: singular vectors are the gradient's, singular values the polynomial's."""
    problem = matrix_problem(12, 20, momentum=0.0, weight_decay=0.0, lr=1.0)
    steps = random_steps(problem, 1)
    moved = -_update(adapter, problem, steps)
    u, _, vt = torch.linalg.svd(steps[0][0].gradients["weight"].double(), full_matrices=False)
    seen = u.T @ moved @ vt.T
    size = seen.diagonal().mean().abs().clamp(min=1e-30)
    spread = float((seen.diagonal() / size - 1).abs().max())
    why = "singular values are not alike: is Newton-Schulz run at all?" if spread > 0.4 else "singular vectors moved"
    leak = float((seen - seen.diagonal().diag()).abs().max() / size)
    return Measured(_worst((leak, spread - 0.4)), 0.05, why)


@_check("muon", "its size is 0.2 sqrt(max(rows, columns))")
def _size(adapter: Adapter) -> Measured:
    """The update's root mean square is `update_rms` whatever the shape (Moonlight's match)."""
    ratios = []
    for shape in ((12, 20), (40, 10), (10, 40), (16, 16)):
        problem = matrix_problem(*shape, momentum=0.0, weight_decay=0.0, lr=1.0)
        expected = reference(problem, random_steps(problem, 1))["weight"] - problem.parameters["weight"].double()
        ratios.append(float(_update(adapter, problem, random_steps(problem, 1)).norm() / expected.norm()))
    worst = max(ratios, key=lambda ratio: math.inf if math.isnan(ratio) else abs(math.log(max(ratio, 1e-9))))
    why = f"the update is {worst:.2f} times 0.2 sqrt(max(rows, columns)) of an orthogonal matrix"
    return Measured(abs(worst - 1), TOLERANCE, why)


@_check("muon", "three steps are the reference's")
def _three_steps(adapter: Adapter) -> Measured:
    """Momentum, decay and scale together, against the reference, with Nesterov's look-ahead or without."""
    problem = matrix_problem(12, 20)
    steps = random_steps(problem, 3)
    found = adapter(problem, steps)["weight"].double()
    start = problem.parameters["weight"].double()
    as_printed = reference(replace(problem, settings=replace(problem.settings, nesterov=False)), steps)["weight"]
    expected = reference(problem, steps)["weight"]
    if _relative(found - as_printed, as_printed - start) < TOLERANCE:
        expected = as_printed  # K2's Algorithm 1; the look-ahead is in Moonlight's first footnote
    why = "another rule"
    for name, settings in (
        ("no momentum", replace(problem.settings, momentum=0.0)),
        ("no weight decay", replace(problem.settings, weight_decay=0.0)),
        ("weight decay without the learning rate", replace(problem.settings, weight_decay=0.1 / 0.02)),
    ):
        other = replace(problem, settings=settings)
        if _relative(found - reference(other, steps)["weight"], expected - start) < TOLERANCE:
            why = f"these are the steps of {name}"
    return Measured(_relative(found - expected, expected - start), TOLERANCE, why)


@_check("muon", "a zero gradient leaves decay alone to act")
def _decay_alone(adapter: Adapter) -> Measured:
    problem = matrix_problem(12, 20, lr=0.1, weight_decay=0.5)
    zero = [[Micro({"weight": torch.zeros(12, 20)})]]
    expected = problem.parameters["weight"] * 0.95
    found = adapter(problem, zero)["weight"]
    return Measured(_relative(found - expected, expected), EXACT, "not lr * wd")


@_check("stacks", "each matrix of a stack by itself")
def _each_by_itself(adapter: Adapter) -> Measured:
    """A stack moves as its matrices, each given alone; they differ in size, so that a neighbour would be felt."""
    problem = matrix_problem(4, 16, 8, weight_decay=0.0)
    sizes = torch.tensor([1e-3, 1.0, 1e3, 30.0])[:, None, None]
    gradient = random_tensor(4, 16, 8, seed=2) * sizes
    found = _update(adapter, problem, [[Micro({"weight": gradient})]])
    expected = reference(problem, [[Micro({"weight": gradient})]])["weight"] - problem.parameters["weight"].double()
    flat = replace(problem, matrices={"weight": (1, 64, 8)})
    across = reference(flat, [[Micro({"weight": gradient})]])["weight"] - problem.parameters["weight"].double()
    distances = [_relative(f - e, e) for f, e in zip(found, expected, strict=True)]
    as_one = _relative(found / found.norm() - across / across.norm(), across / across.norm())
    why = "orthogonalised across the expert axis, as one tall matrix" if as_one < 0.1 else "matrices of a stack mix"
    return Measured(_worst(distances), TOLERANCE, why)


@_check("guards", "the size of the gradient does not matter")
def _gradient_scale(adapter: Adapter) -> Measured:
    """The same step from gradients a trillion times smaller or larger."""
    problem = matrix_problem(12, 20, weight_decay=0.0)
    plain = _update(adapter, problem, random_steps(problem, 2))
    distances = {
        scale: _relative(_update(adapter, problem, random_steps(problem, 2, scale=scale)) - plain, plain)
        for scale in (1e-12, 1e-20, 1e12)
    }
    worst = max(distances, key=lambda scale: math.inf if math.isnan(distances[scale]) else distances[scale])
    why = f"gradients of size {worst:.0e} give another step: an epsilon or a clip counts"
    return Measured(distances[worst], TOLERANCE, why)


@_check("guards", "a step that is not finite is left out")
def _non_finite(adapter: Adapter) -> Measured:
    """A step with nan in it changes nothing: neither the weights nor what the next step does."""
    problem = matrix_problem(12, 20)
    first, second = random_steps(problem, 2)
    bad = dict(first[0].gradients)
    bad["weight"] = bad["weight"].clone()
    bad["weight"][3, 4] = torch.nan
    expected = adapter(problem, [first, second])["weight"]
    found = adapter(problem, [first, [Micro(bad)], second])["weight"]
    why = "nan reached the momentum or the weights"
    return Measured(_relative(found - expected, expected), 0.0, why)


@_check("accumulation", "micro-batches add up to the large batch")
def _micro_batches(adapter: Adapter) -> Measured:
    """Four micro-batches are the step that their sum is."""
    problem = matrix_problem(12, 20)
    many = random_steps(problem, 2, micro_batches=4)
    sums = [[Micro({"weight": torch.stack([m.gradients["weight"] for m in micros]).sum(0)})] for micros in many]
    plain = _update(adapter, problem, sums)
    why = "micro-batches are orthogonalised one by one"
    distance = _relative(_update(adapter, problem, many) - plain, plain)
    return Measured(distance, TOLERANCE, why)


@dataclass(frozen=True)
class _Clipped:
    """What one clip did: per layer and head the factors on each kind of rows, and what they should be."""

    gamma: Tensor
    query_nope: Tensor
    query_rope: Tensor
    key: Tensor
    value: Tensor
    rotary_key: Tensor


def _clipped(adapter: Adapter, problem: Problem, steps: Steps) -> tuple[_Clipped, Mapping[str, Tensor]]:
    assert problem.settings.tau is not None
    after = adapter(problem, steps)
    maxima = torch.stack(
        [torch.stack([m.max_scores[i] for m in steps[0]]).amax(0) for i in range(len(problem.attention))]
    )
    gamma = (problem.settings.tau / maxima).clamp(max=1.0)
    kinds: dict[str, list[Tensor]] = {name: [] for name in ("query_nope", "query_rope", "key", "value", "rotary_key")}
    for layer in problem.attention:
        heads, nope = layer.num_heads, layer.nope_dim
        query, key = (
            (after[name] / problem.parameters[name]).unflatten(0, (heads, -1))
            for name in (layer.query, layer.key_value)
        )
        kinds["query_nope"].append(query[:, :nope].mean((1, 2)))
        kinds["query_rope"].append(query[:, nope:].mean((1, 2)))
        kinds["key"].append(key[:, :nope].mean((1, 2)))
        kinds["value"].append(key[:, nope:].mean((1, 2)))
        kinds["rotary_key"].append(
            (after[layer.rotary_key] / problem.parameters[layer.rotary_key]).mean().expand(heads)
        )
    return _Clipped(gamma, **{name: torch.stack(parts) for name, parts in kinds.items()}), after


def _explain(adapter: Adapter, problem: Problem, seen: _Clipped) -> str:
    """What a wrong clip looks like, the commonest mistakes first."""
    moved = (seen.query_nope - 1).abs() > 1e-4
    hit = seen.gamma < 1
    if not moved.any() and not ((seen.key - 1).abs() > 1e-4).any():
        return "no row was scaled"
    # The same weights with scores half as large: a rule that looks at scores clips other heads, or none.
    steps = [
        [Micro({n: torch.zeros_like(p) for n, p in problem.parameters.items()}, [0.5 * s for s in _maxima(problem)])]
    ]
    again, _ = _clipped(adapter, problem, steps)
    if torch.allclose(again.query_nope, seen.query_nope, atol=1e-4):
        return "decided by the weights: smaller scores change nothing"
    if bool((moved & ~hit).any()) and float(seen.query_nope.std()) < 1e-4:
        return "one factor for all heads: innocent heads shrink too"
    if bool((moved & ~hit).any()):
        return "heads below tau are scaled"
    if not ((seen.key - 1).abs() > 1e-4).any():
        return "keys are forgotten: only the query is scaled"
    if torch.allclose(seen.query_rope, seen.query_nope, atol=1e-4):
        return "the rotary query takes all of gamma, for the rotary key is shared and stays"
    return "not sqrt(gamma) on both sides"


def _maxima(problem: Problem) -> list[Tensor]:
    return [layer.max_scores(problem.parameters) for layer in problem.attention]


@_check("clip", "clipped heads come to tau, the others stay")
def _comes_to_tau(adapter: Adapter) -> Measured:
    """With learning rate 0, the same inputs' maxima afterwards: tau for clipped heads, unchanged for the others."""
    problem, _ = attention_problem()
    seen, after = _clipped(adapter, problem, clip_steps(problem, problem.attention))
    assert problem.settings.tau is not None
    before = torch.stack(_maxima(problem))
    again = torch.stack([layer.max_scores(after) for layer in problem.attention])
    wrong = ((again - before.clamp(max=problem.settings.tau)) / problem.settings.tau).abs().max()
    return Measured(float(wrong), EXACT, _explain(adapter, problem, seen))


@_check("clip", "the right rows by the right powers")
def _right_rows(adapter: Adapter) -> Measured:
    """sqrt(gamma) on query and key, gamma on the rotary query, nothing on values and the shared rotary key."""
    problem, _ = attention_problem()
    seen, _ = _clipped(adapter, problem, clip_steps(problem, problem.attention))
    root, one = seen.gamma.sqrt(), torch.ones_like(seen.gamma)
    wrong = [
        (seen.query_nope - root).abs().max(),
        (seen.query_rope - seen.gamma).abs().max(),
        (seen.key - root).abs().max(),
        (seen.value - one).abs().max(),
        (seen.rotary_key - one).abs().max(),
    ]
    names = ("query rows", "rotary query rows", "key rows", "value rows", "the shared rotary key")
    why = "; ".join(f"{name} are off by {float(w):.2f}" for name, w in zip(names, wrong, strict=True) if w > EXACT)
    return Measured(float(torch.stack(wrong).max()), EXACT, why)


@_check("clip", "maxima over all micro-batches")
def _all_micro_batches(adapter: Adapter) -> Measured:
    """The maximum is over all micro-batches, whichever holds it."""
    problem, second = attention_problem()
    together = torch.stack(
        [larger_maxima(a, b, problem.parameters) for a, b in zip(problem.attention, second, strict=True)]
    )
    zero = {name: torch.zeros_like(p) for name, p in problem.parameters.items()}
    expected = adapter(problem, [[Micro(zero, list(together))]])
    distances = []
    for batches in ((problem.attention, second), (second, problem.attention)):
        found = adapter(problem, clip_steps(problem, *batches))
        distances += [_relative(found[name] - expected[name], expected[name]) for name in expected]
    why = "only one micro-batch's maxima count"
    return Measured(_worst(distances), EXACT, why)


@_check("clip", "every step clips, after its update")
def _after_each_update(adapter: Adapter) -> Measured:
    """Two large steps: both times QK-Clip scales what the update has made."""
    problem, steps = moving_problem()
    expected = reference(problem, steps)
    found = adapter(problem, steps)
    once = reference(problem, [steps[0], [replace(m, max_scores=[0 * s for s in m.max_scores]) for m in steps[1]]])
    moved = {name: expected[name] - start for name, start in problem.parameters.items()}
    distance = _worst(_relative(found[name] - expected[name], moved[name]) for name in expected)
    as_once = _worst(_relative(found[name] - once[name], moved[name]) for name in expected)
    why = "only the first step clips" if as_once < TOLERANCE else "clipped before the update, or not in every step"
    return Measured(distance, TOLERANCE, why)


@_check("clip", "a score that is not finite is left out with its step")
def _non_finite_score(adapter: Adapter) -> Measured:
    """A step in which one score is not finite changes nothing."""
    problem, (first, second) = moving_problem()
    bad = [replace(m, max_scores=[s.index_fill(0, torch.tensor([1]), torch.nan) for s in m.max_scores]) for m in first]
    expected, found = adapter(problem, [first, second]), adapter(problem, [first, bad, second])
    distance = _worst(_relative(found[name] - value, value) for name, value in expected.items())
    why = "a score that is no number reached the weights or the momentum"
    return Measured(distance, 0.0, why)


def golden() -> list[dict[str, object]]:
    """The problems of `same` with their answers, as plain lists: for optimizers that Python cannot call."""
    found = []
    for part, name, problem, steps in problems():
        answer = reference(problem, steps)
        found.append(
            {
                "name": f"{part}: {name}",
                "settings": vars(problem.settings),
                "matrices": dict(problem.matrices),
                "parameters": {key: value.tolist() for key, value in problem.parameters.items()},
                "attention": [
                    {key: value.tolist() if isinstance(value, Tensor) else value for key, value in vars(layer).items()}
                    for layer in problem.attention
                ],
                "steps": [
                    [
                        {
                            "gradients": {key: value.tolist() for key, value in micro.gradients.items()},
                            "max_scores": [scores.tolist() for scores in micro.max_scores],
                        }
                        for micro in micros
                    ]
                    for micros in steps
                ],
                "expected": {key: value.tolist() for key, value in answer.items()},
                "relative_tolerance": EXACT if problem.attention else TOLERANCE,
            }
        )
    return found


def _main() -> None:
    from openk2.testing.muonclip_adapters import ALL

    parser = argparse.ArgumentParser(description="The MuonClip kit's table for the optimizers that come with it.")
    parser.add_argument("--golden", metavar="FILE", help="write golden steps as JSON instead")
    arguments = parser.parse_args()
    if arguments.golden:
        try:
            write_atomic(arguments.golden, json.dumps(golden()) + "\n")
        except OSError as error:
            parser.exit(2, f"error: {arguments.golden}: {error.strerror}\n")
        return
    for name, adapter, parts in ALL:
        findings = check(adapter, parts)
        passed = sum(finding.passed for finding in findings)
        print(f"{name}: {passed} of {len(findings)} pass\n{table(findings)}\n")


if __name__ == "__main__":
    _main()
