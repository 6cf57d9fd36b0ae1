"""The kit passes what is right and names what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from openk2.testing import muonclip as kit
from openk2.testing import muonclip_adapters as adapters
from openk2.testing import muonclip_problems as problems


def failures(adapter, parts=kit.PARTS) -> dict[str, str]:
    return {finding.name: finding.why for finding in kit.check(adapter, parts) if not finding.passed}


def test_our_optimizer_passes_everything():
    findings = kit.check(adapters.ours)
    assert len(findings) == 13 and not failures(adapters.ours)
    assert {finding.part for finding in findings} == set(kit.PARTS)


def test_torchs_muon_passes_the_part_it_has():
    assert not failures(adapters.torch_muon, ("muon", "accumulation"))


def test_torchs_muon_has_neither_clip_nor_guard():
    found = failures(adapters.torch_muon, ("guards", "clip"))
    assert found["clipped heads come to tau, the others stay"] == "no row was scaled"
    assert "a step that is not finite is left out" in found


@pytest.mark.parametrize(
    ("adapter", "part", "check", "why"),
    [
        (adapters.global_scalar, "clip", "clipped heads come to tau, the others stay", "one factor for all heads"),
        (adapters.weight_norm, "clip", "clipped heads come to tau, the others stay", "decided by the weights"),
        (adapters.keys_forgotten, "clip", "clipped heads come to tau, the others stay", "keys are forgotten"),
        (adapters.across_experts, "stacks", "each matrix of a stack by itself", "across the expert axis"),
    ],
    ids=["global scalar", "weight norm", "keys forgotten", "across experts"],
)
def test_wrong_variants_fail_with_the_right_diagnosis_and_only_where_they_are_wrong(adapter, part, check, why):
    assert why in failures(adapter)[check]
    assert not failures(adapter, [other for other in kit.PARTS if other != part])


def with_settings(**changes):
    """Our optimizer, built with other settings than the problem's."""
    return lambda problem, steps: adapters.ours(replace(problem, settings=replace(problem.settings, **changes)), steps)


def step_by_step(problem, steps):
    """Each micro-batch taken for a step of its own."""
    return adapters.ours(problem, [[micro] for micros in steps for micro in micros])


def first_micro_batch_only(problem, steps):
    return adapters.ours(problem, [[replace(m, max_scores=micros[0].max_scores) for m in micros] for micros in steps])


def sgd(problem, steps):
    s = problem.settings
    values = dict(problem.parameters)
    for micros in steps:
        for name in values:
            gradient = torch.stack([m.gradients[name] for m in micros]).sum(0)
            values[name] = values[name] * (1 - s.lr * s.weight_decay) - s.lr * gradient
    return values


def nothing_is_skipped(problem, steps):
    def clean(micro):
        return replace(micro, gradients={name: torch.nan_to_num(g) for name, g in micro.gradients.items()})

    return adapters.ours(problem, [[clean(micro) for micro in micros] for micros in steps])


def clipped_before_the_update(problem, steps):
    values = dict(problem.parameters)
    for micros in steps:
        for lr, tau in ((0.0, problem.settings.tau), (problem.settings.lr, None)):
            settings = replace(problem.settings, lr=lr, tau=tau, weight_decay=0.0)
            values = adapters.ours(replace(problem, parameters=values, settings=settings), [micros])
    return values


def clipped_once(problem, steps):
    rest = [[replace(m, max_scores=[s * 0 for s in m.max_scores]) for m in micros] for micros in steps[1:]]
    return adapters.ours(problem, [*steps[:1], *rest])


def scores_are_not_looked_at(problem, steps):
    def clean(micro):
        return replace(micro, max_scores=[torch.nan_to_num(scores) for scores in micro.max_scores])

    return adapters.ours(problem, [[clean(micro) for micro in micros] for micros in steps])


def test_algorithm_1_as_it_is_printed_passes_as_well():
    assert not failures(with_settings(nesterov=False))


def broken(problem, steps):
    raise RuntimeError("no such thing")


@pytest.mark.parametrize(
    ("adapter", "check", "why"),
    [
        (with_settings(momentum=0.0), "three steps are the reference's", "no momentum"),
        (with_settings(weight_decay=0.0), "three steps are the reference's", "no weight decay"),
        (with_settings(update_rms=0.1), "its size is 0.2 sqrt(max(rows, columns))", "0.50 times"),
        (with_settings(weight_decay=0.0), "a zero gradient leaves decay alone to act", "lr * wd"),
        (sgd, "the update is orthogonal", "Newton-Schulz"),
        (step_by_step, "micro-batches add up to the large batch", "one by one"),
        (first_micro_batch_only, "maxima over all micro-batches", "only one micro-batch"),
        (nothing_is_skipped, "a step that is not finite is left out", "nan reached"),
        (clipped_before_the_update, "every step clips, after its update", "before the update"),
        (clipped_once, "every step clips, after its update", "only the first step"),
        (scores_are_not_looked_at, "a score that is not finite is left out with its step", "no number"),
        (broken, "the update is orthogonal", "no such thing"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", "settings"),
)
def test_other_mistakes_are_named_too(adapter, check, why):
    found = failures(adapter)
    if adapter is broken:
        assert len(found) == 13 and all(why in reason for reason in found.values())
    else:
        assert why in found[check]


def test_two_ways_to_run_one_optimizer_are_compared():
    assert all(finding.passed for finding in kit.same(adapters.ours, adapters.ours))
    assert not any(finding.passed for finding in kit.same(adapters.ours, with_settings(momentum=0.5, tau=0.1)))


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="saw 'clips', expected some of muon"):
        kit.check(adapters.ours, ["clips"])
    with pytest.raises(ValueError, match="saw none, expected some of muon"):
        kit.check(adapters.ours, [])


def test_parts_may_be_one_name_or_come_from_a_generator():
    expected = [finding.name for finding in kit.check(adapters.ours, ["stacks"])]
    for parts in ("stacks", (part for part in ["stacks"])):
        assert [finding.name for finding in kit.check(adapters.ours, parts)] == expected


def test_golden_steps_that_cannot_be_written_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["kit", "--golden", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        kit._main()
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_golden_steps_are_plain_and_answered(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["kit", "--golden", str(tmp_path / "golden.json")])
    kit._main()
    cases = json.loads((tmp_path / "golden.json").read_text())
    assert [case["name"].split(":")[0] for case in cases] == ["muon", "stacks", "clip"]
    for case, (_, _, problem, steps) in zip(cases, problems.problems(), strict=True):
        found = adapters.ours(problem, steps)
        for name, start in case["parameters"].items():
            expected, moved = (
                torch.tensor(case["expected"][name]),
                torch.tensor(case["expected"][name]) - torch.tensor(start),
            )
            assert float((found[name] - expected).norm()) <= case["relative_tolerance"] * float(moved.norm()) + 1e-6


def spoilt(when):
    """Our optimizer, with NaN for what it should have given where `when` says so."""

    def run(problem, steps):
        found = adapters.ours(problem, steps)
        return {name: value * torch.nan if when(name, problem, steps) else value for name, value in found.items()}

    return run


def gradient_below(limit):
    return lambda name, problem, steps: 0 < float(steps[0][0].gradients[name].abs().max()) < limit


@pytest.mark.parametrize(
    ("when", "check"),
    [
        (gradient_below(1e-15), "the size of the gradient does not matter"),
        (lambda name, problem, steps: problem.parameters[name].ndim == 3, "each matrix of a stack by itself"),
        (lambda name, problem, steps: problem.parameters[name].shape == (10, 40), "its size is 0.2"),
        (lambda name, problem, steps: name.endswith("1.key_value"), "maxima over all micro-batches"),
    ],
    ids=["tiny gradients", "stacks", "one shape", "one layer"],
)
def test_nan_never_passes(when, check):
    assert any(name.startswith(check) for name in failures(spoilt(when)))
    compared = kit.same(spoilt(lambda name, problem, steps: name.endswith(("key_value", "weight"))), adapters.ours)
    assert not any(finding.passed for finding in compared)
