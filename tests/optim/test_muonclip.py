"""MuonClip against torch's own optimizers, its routes, its guards, and that its state continues bit for bit."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from small_training import SMALL, batch, build, make_muonclip, same_tensors, silent_console, snapshot, take_step
from torch import nn

from openk2.config.run import OptimConfig
from openk2.model.model import Model
from openk2.optim import muonclip
from openk2.optim.audit import audit, totals
from openk2.optim.muon import orthogonalise, update_scale
from openk2.optim.muonclip import MuonClip
from openk2.protocols import ParameterSpec
from openk2.train.session import make_optimizer
from openk2.train.state import pack, unpack


def spec(parameter: nn.Parameter, route: str = "muon", matrices: tuple[int, int, int] | None = None) -> ParameterSpec:
    if route == "muon" and matrices is None:
        matrices = (1, *parameter.shape)
    return ParameterSpec("weight", parameter, route, "mlp", matrices)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def give_gradients(model: Model, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def cloned(states: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    return {name: {key: tensor.clone() for key, tensor in state.items()} for name, state in states.items()}


def distance_from_torchs_muon(shape: tuple[int, int], **changed: float) -> float:
    """After ten steps with weight decay: how far the two are apart, relative to how far they went."""
    ours, theirs = nn.Parameter(random(*shape)), nn.Parameter(random(*shape))
    mine = MuonClip([spec(ours)], **{"lr": 0.05, "weight_decay": 0.5, **changed})
    torchs = torch.optim.Muon([theirs], lr=0.05, weight_decay=0.5, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(10):
        ours.grad = random(*shape, seed=step + 1)
        theirs.grad = ours.grad.clone()
        mine.step()
        torchs.step()
    with torch.no_grad():
        return float((ours - theirs).norm() / (theirs - random(*shape)).norm())


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (20, 20)], ids=["tall", "wide", "square"])
def test_one_matrix_moves_as_with_torchs_muon(shape):
    """The two round to bf16 at different places, which Newton-Schulz enlarges: alike to 0.5%, not to a bit."""
    assert distance_from_torchs_muon(shape) < 0.005


@pytest.mark.parametrize(
    "changed", [{"weight_decay": 0.4}, {"momentum": 0.9}, {"update_rms": 0.19}, {"lr": 0.048}, {"ns_steps": 4}], ids=str
)
def test_the_comparison_with_torchs_muon_sees_small_differences(changed):
    assert distance_from_torchs_muon((24, 16), **changed) > 0.01


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12])
def test_the_updates_size_does_not_follow_the_gradients(factor):
    moved = []
    for size in (1.0, factor):
        weight = nn.Parameter(torch.zeros(16, 24))
        optimizer = MuonClip([spec(weight)], lr=1.0, weight_decay=0.0)
        for step in range(3):
            weight.grad = random(16, 24, seed=step) * size
            report = optimizer.step()
        moved.append(weight.detach())
        # Singular values lie about 1, so the RMS is near 0.2.
        assert report.update_rms["muon.mlp"] == pytest.approx(0.2, rel=0.2)
    assert float((moved[0] - moved[1]).norm() / moved[0].norm()) < 0.02


def test_experts_gate_and_up_are_orthogonalised_each_by_itself():
    """The model's stacked parameters move as their matrices would, each given to Newton-Schulz alone."""
    model = build()
    give_gradients(model)
    # Very different sizes: a matrix that saw its neighbours would be dwarfed by them.
    experts = model.layers[1].mlp.experts
    experts.gate_up_proj.grad *= torch.logspace(-4, 4, 4)[:, None, None]
    experts.gate_up_proj.grad[:, : SMALL.moe_intermediate_size] *= 1e3
    dense = model.layers[0].mlp.gate_up_proj
    dense.grad[: SMALL.intermediate_size] *= 1e3
    cases = {dense: SMALL.intermediate_size, experts.gate_up_proj: SMALL.moe_intermediate_size, experts.down_proj: 32}
    before = {parameter: parameter.detach().clone() for parameter in cases}
    make_muonclip(model, qk_clip_tau=None).step()
    for parameter, rows in cases.items():
        slices = parameter.grad.reshape(-1, rows, parameter.shape[-1])
        alone = torch.cat([orthogonalise(one[None] * 1.95, 5) for one in slices]).float().view(parameter.shape)
        scale = update_scale(rows, parameter.shape[-1], 0.2)
        expected = before[parameter] * (1 - 3e-3 * 0.1) - 3e-3 * scale * alone
        moved = (expected - before[parameter]).norm()
        assert float((parameter.detach() - expected).norm() / moved) < 0.01


def test_vectors_embedding_and_head_move_as_with_torchs_adamw():
    model = build()
    optimizer = make_muonclip(model, adam_grad_clip=1e9, qk_clip_tau=None)
    names = [name for name, p in model.named_parameters() if p.ndim == 1 or name.startswith(("embed", "lm_head"))]
    twins = {name: nn.Parameter(model.get_parameter(name).detach().clone()) for name in names}
    torchs = torch.optim.AdamW(twins.values(), lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(4):
        give_gradients(model, seed=step)
        for name, twin in twins.items():
            twin.grad = model.get_parameter(name).grad.clone()
        optimizer.step()
        torchs.step()
    for name, twin in twins.items():
        torch.testing.assert_close(model.get_parameter(name), twin, rtol=1e-6, atol=1e-7)


def test_norm_gains_and_matrices_are_decayed():
    """Zero gradients leave weight decay alone to act: every parameter shrinks by lr * weight_decay, gains too."""
    model = build()
    before = snapshot(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make_muonclip(model, lr=0.1, weight_decay=0.5, qk_clip_tau=None).step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name] * 0.95, rtol=1e-6, atol=1e-8)


def test_the_gradient_clip_is_of_adamws_raw_gradients_alone():
    """AdamW's group is scaled to the limit by its own norm; Muon's gradients neither count nor change."""
    model = build()
    optimizer = make_muonclip(model, adam_grad_clip=0.5, qk_clip_tau=None)
    give_gradients(model)
    before = {s.name: s.parameter.grad.clone() for s in optimizer.specs}
    report = optimizer.step()
    total = torch.stack([g.square().sum() for g in before.values()]).sum().sqrt()
    assert report.grad_norm == pytest.approx(float(total), rel=1e-5)  # before clipping, of all
    adam = torch.stack([before[s.name].square().sum() for s in optimizer.specs if s.route == "adamw"]).sum().sqrt()
    for s in optimizer.specs:
        factor = 0.5 / float(adam) if s.route == "adamw" else 1.0
        torch.testing.assert_close(s.parameter.grad, before[s.name] * factor, rtol=1e-4, atol=1e-9)
    # A norm within the limit is left as it is.
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    optimizer.step()
    assert all(bool((p.grad == 1e-6).all()) for p in model.parameters())


@pytest.mark.parametrize("route", ["muon", "adamw"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_changes_nothing(route, bad):
    model = build()
    optimizer = make_muonclip(model)
    give_gradients(model)
    optimizer.step(max_scores=torch.full((3, 2), 200.0))
    before = {"model": snapshot(model), "optimizer": cloned(pack(model, optimizer, {})["optimizer"])}
    give_gradients(model, seed=2)
    next(s for s in optimizer.specs if s.route == route).parameter.grad.view(-1)[3] = bad
    report = optimizer.step(max_scores=torch.full((3, 2), 200.0))
    assert report.skipped and report.gamma is None and not report.update_rms
    after = pack(model, optimizer, {})
    assert same_tensors(before["model"], after["model"]) and same_tensors(before["optimizer"], after["optimizer"])


def test_a_non_finite_score_skips_the_step_too():
    model = build()
    optimizer = make_muonclip(model)
    before = snapshot(model)
    give_gradients(model)
    scores = torch.ones(3, 2)
    scores[1, 1] = float("nan")
    assert optimizer.step(max_scores=scores).skipped and same_tensors(before, snapshot(model))
    assert not optimizer.state


def test_saved_and_loaded_it_continues_bit_for_bit():
    """Through torch's own state_dict, and through the checkpoint's pack and unpack."""
    whole = build()
    optimizer = make_muonclip(whole)
    for step in range(3):
        take_step(whole, optimizer, batch(step))
    packed = pack(whole, optimizer, {"at": 3})
    copies = {"model": snapshot(whole), "cursor": packed["cursor"], "optimizer": cloned(packed["optimizer"])}
    native = optimizer.state_dict()
    native["state"] = cloned(native["state"])
    assert set(copies["optimizer"]) == {name for name, _ in whole.named_parameters()}
    for step in range(3, 5):
        take_step(whole, optimizer, batch(step))
    for way in ("unpack", "state_dict"):
        other = build(seed=9)
        fresh = make_muonclip(other)
        if way == "unpack":
            assert unpack({**copies, "optimizer": cloned(copies["optimizer"])}, other, fresh) == {"at": 3}
        else:
            other.load_state_dict(copies["model"])
            fresh.load_state_dict(native)
        for step in range(3, 5):
            take_step(other, fresh, batch(step))
        assert same_tensors(snapshot(other), snapshot(whole)), way
        assert same_tensors(pack(other, fresh, {}), pack(whole, optimizer, {})), way


def test_a_checkpoint_of_another_model_is_refused():
    model = build()
    optimizer = make_muonclip(model)
    state = pack(model, optimizer, {})
    other = build(num_hidden_layers=2)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        unpack(state, other, make_muonclip(other))


def test_without_a_muon_parameter_it_refuses_in_one_line():
    gain = nn.Parameter(torch.ones(4))
    with pytest.raises(ValueError, match="no parameter routed to Muon") as caught:
        MuonClip([spec(gain, "adamw")])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="saw route 'sgd'"):
        MuonClip([spec(gain, "sgd"), spec(nn.Parameter(torch.ones(2, 2)))])
    with pytest.raises(ValueError, match="closure"):
        MuonClip([spec(nn.Parameter(torch.ones(2, 2)))]).step(lambda: 1.0)


def test_the_audit_covers_every_parameter_once():
    model = build()
    optimizer = make_muonclip(model)
    rows = audit(model.parameter_specs(), 0.2)
    assert [row.name for row in rows] == [name for name, _ in model.named_parameters()]
    assert sum(totals(rows).values()) == sum(p.numel() for p in model.parameters())
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    muon = {s.name for s in optimizer.specs if s.parameter in set(optimizer.param_groups[0]["params"])}
    assert muon == {row.name for row in rows if row.route == "muon"}
    for row in rows:
        assert (row.scale is None) == (row.route == "adamw") == (row.matrices is None)
        if row.matrices is not None:
            assert row.scale == pytest.approx(0.2 * max(row.matrices[1:]) ** 0.5)
    broken = ParameterSpec("x", nn.Parameter(torch.ones(4, 4)), "muon", "mlp", (1, 4, 3))
    with pytest.raises(ValueError, match="x: saw matrices"):
        audit([broken], 0.2)


def test_what_is_said_of_the_optimizer_is_what_it_does():
    model = build()
    total = sum(p.numel() for p in model.parameters())
    console, heard = silent_console()
    optimizer = make_optimizer(model, OptimConfig(), console)
    muon = sum(p.numel() for p in optimizer.param_groups[0]["params"])
    assert f"{muon:,} parameters by Muon, {total - muon:,} by AdamW" in heard.getvalue()
    assert model.qk_clip_tau == 100.0
    console, heard = silent_console()
    baseline = make_optimizer(model, OptimConfig(name="adamw"), console)
    assert [group["route"] for group in baseline.param_groups] == ["adamw"] and model.qk_clip_tau is None
    assert f"0 parameters by Muon, {total:,} by AdamW" in heard.getvalue()


def test_the_adamw_baseline_is_torchs_adamw_for_every_parameter():
    model, twin = build(), build()
    optimizer = make_muonclip(model, name="adamw", adam_grad_clip=1e9)
    torchs = torch.optim.AdamW(twin.parameters(), lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(2):
        give_gradients(model, step)
        give_gradients(twin, step)
        report = optimizer.step(max_scores=torch.full((3, 2), 1e4))
        torchs.step()
    assert report.gamma is None and {name.partition(".")[0] for name in report.update_rms} == {"adamw"}
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_adamws_rate_can_differ_from_muons():
    model = build()
    optimizer = make_muonclip(model, adam_lr_scale=0.5, weight_decay=0.0, adam_grad_clip=1e9, qk_clip_tau=None)
    twin = build()
    other = make_muonclip(twin, lr=1.5e-3, weight_decay=0.0, adam_grad_clip=1e9, qk_clip_tau=None)
    for owner, made in ((model, optimizer), (twin, other)):
        give_gradients(owner)
        made.step()
    for name, parameter in model.named_parameters():
        same = torch.equal(parameter, twin.get_parameter(name))
        assert same == (parameter.ndim == 1 or name.startswith(("embed", "lm_head"))), name


@pytest.mark.parametrize("route", ["muon", "adamw"])
def test_cautious_decay_acts_only_where_it_pulls_as_the_update_does(route):
    start, gradient = random(12, 16), random(12, 16, seed=3)
    moved = {}
    for name, settings in (
        ("none", {"weight_decay": 0.0}),
        ("all", {"weight_decay": 0.5}),
        ("cautious", {"weight_decay": 0.5, "cautious_weight_decay": True}),
    ):
        weight = nn.Parameter(start.clone())
        weight.grad = gradient.clone()
        MuonClip([spec(weight, route)], lr=0.1, require_muon=False, **settings).step()
        moved[name] = weight.detach()
    together = (start - moved["none"]) * start > 0
    assert 0 < int(together.sum()) < together.numel()
    expected = torch.where(together, moved["all"], moved["none"])
    torch.testing.assert_close(moved["cautious"], expected, rtol=1e-5, atol=1e-6)


def test_a_plain_torch_model_finds_its_routes():
    model = nn.ModuleDict(
        {
            "table": nn.Embedding(50, 16),
            "conv": nn.Conv1d(16, 12, 3),
            "attention": nn.MultiheadAttention(16, 2),
            "mlp": nn.Sequential(nn.Linear(16, 24), nn.LayerNorm(24), nn.Linear(24, 16, bias=False)),
            "gate": nn.Linear(16, 4, bias=False),
            "head": nn.Linear(16, 50, bias=False),
        }
    )
    model["mlp"][2].weight.requires_grad_(False)
    optimizer = MuonClip.from_module(model, adamw=["gate"], lr=0.1)
    routes = {s.name: (s.route, s.matrices) for s in optimizer.specs}
    assert {name: matrices for name, (route, matrices) in routes.items() if route == "muon"} == {
        "conv.weight": (1, 12, 48),
        "attention.in_proj_weight": (3, 16, 16),
        "attention.out_proj.weight": (1, 16, 16),
        "mlp.0.weight": (1, 24, 16),
    }
    assert {"table.weight", "head.weight", "gate.weight", "mlp.1.weight"} <= {
        n for n, (r, _) in routes.items() if r == "adamw"
    }
    assert "mlp.2.weight" not in routes
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert {n for n, p in model.named_parameters() if torch.equal(p, before[n])} == {"mlp.2.weight"}
    with pytest.raises(ValueError, match="saw 'gates', expected the name of a trained parameter"):
        MuonClip.from_module(model, adamw=["gates"])
    tied = nn.ModuleDict({"table": nn.Embedding(50, 16), "head": nn.Linear(16, 50, bias=False), "w": nn.Linear(16, 16)})
    tied["head"].weight = tied["table"].weight
    assert {s.name: s.role for s in MuonClip.from_module(tied).specs} == {
        "w.weight": "matrix",
        "table.weight": "embedding",
        "w.bias": "vector",
    }


def test_heads_can_be_matrices_of_their_own():
    """Muon Split: each head's queries, and its keys and values, are orthogonalised by themselves."""
    model = build()
    matrices = {s.name: s.matrices for s in model.parameter_specs(split_heads=True) if s.route == "muon"}
    plain = {s.name: s.matrices for s in model.parameter_specs() if s.route == "muon"}
    assert matrices["layers.0.self_attn.q_b_proj.weight"] == (2, 12, 16)
    assert matrices["layers.0.self_attn.kv_b_proj.weight"] == (2, 14, 12)
    changed = {name.split(".")[-2] for name in matrices if matrices[name] != plain[name]}
    assert changed == {"q_b_proj", "kv_b_proj"}
    asked = make_optimizer(model, OptimConfig(muon_split=True), silent_console()[0])
    assert {s.name: s.matrices for s in asked.specs if s.route == "muon"} == matrices
    assert totals(audit(model.parameter_specs(split_heads=True), 0.2)) == totals(audit(model.parameter_specs(), 0.2))


def test_what_cannot_be_seen_as_its_matrices_is_refused():
    for shape, matrices in (((64, 32), (1, 32, 32)), ((32, 64), (2, 32, 32)), ((8, 8), None)):
        declared = ParameterSpec("w", nn.Parameter(torch.randn(shape)), "muon", "mlp", matrices)
        with pytest.raises(ValueError, match=r"w: saw matrices .*, expected a view of shape"):
            MuonClip([declared])
    with pytest.raises(ValueError, match="not contiguous"):
        MuonClip([spec(nn.Parameter(torch.randn(6, 4).T))])
    optimizer = MuonClip([spec(nn.Parameter(torch.randn(6, 4)))])
    with pytest.raises(ValueError, match="saw a new parameter group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.randn(3))]})


def test_adamws_parameters_may_all_be_without_gradients():
    model = nn.Linear(8, 8)
    optimizer = MuonClip.from_module(model, lr=0.1)
    before = model.weight.detach().clone()
    model.weight.grad = random(8, 8)
    assert optimizer.step().grad_norm == pytest.approx(float(random(8, 8).norm()))
    assert not torch.equal(model.weight, before)


def char_gpt(vocabulary: int = 65, positions: int = 256, width: int = 16) -> nn.ModuleDict:
    """A table of positions larger than the vocabulary, as in any character-level model."""
    return nn.ModuleDict(
        {
            "token": nn.Embedding(vocabulary, width),
            "position": nn.Embedding(positions, width),
            "up": nn.Linear(width, 4 * width, bias=False),
            "norm": nn.LayerNorm((4, width)),
            "head": nn.Linear(width, vocabulary, bias=False),
        }
    )


def routes(model: nn.Module, **options: Any) -> dict[str, str]:
    return {s.name: s.role for s in MuonClip.from_module(model, **options).specs}


def test_position_tables_and_norms_do_not_mislead_the_routes():
    model = char_gpt()
    model.register_parameter("class_token", nn.Parameter(torch.zeros(1, 1, 16)))
    expected = {"up.weight": "matrix", "head.weight": "head", "class_token": "vector", "norm.weight": "vector"}
    assert expected.items() <= routes(model).items()


@pytest.mark.parametrize("sizes", [{"positions": 64}, {"vocabulary": 64}])
def test_where_several_layers_could_be_the_head_it_asks(sizes):
    model = char_gpt(**sizes)
    with pytest.raises(ValueError, match=r"saw 2 linear layers .* up.weight, head.weight; expected one"):
        MuonClip.from_module(model)
    assert routes(model, adamw=["head"])["up.weight"] == "matrix"
    assert routes(model, adamw=["head"])["head.weight"] == "head"
    assert routes(model, adamw=["token"])["head.weight"] == "matrix"  # there is no head


def test_a_tied_head_is_known_and_answers_to_both_names():
    model = char_gpt(vocabulary=64)
    model["head"].weight = model["token"].weight
    for named in ([], ["head"], ["head.weight"], ["token"]):
        found = routes(model, adamw=named)
        assert found["token.weight"] == "embedding" and found["up.weight"] == "matrix" and "head.weight" not in found


def test_a_compiled_model_keeps_its_names():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
    assert routes(torch.compile(model), adamw=["1"]) == routes(model, adamw=["1"])


def test_stacks_outside_a_convolution_are_to_be_declared():
    model = nn.ModuleDict({"conv": nn.Conv2d(4, 8, 3), "gain": nn.ParameterList([nn.Parameter(torch.ones(()))])})
    model.register_parameter("experts", nn.Parameter(torch.randn(4, 16, 6)))
    with pytest.raises(ValueError, match=r"experts: saw shape \(4, 16, 6\) outside a convolution"):
        MuonClip.from_module(model)
    optimizer = MuonClip.from_module(model, matrices={"experts": (8, 8, 6)})
    assert {s.name: s.matrices for s in optimizer.specs if s.route == "muon"} == {
        "experts": (8, 8, 6),
        "conv.weight": (1, 8, 36),
    }
    assert routes(model, adamw=["experts"])["gain.0"] == "vector"
    with pytest.raises(ValueError, match=r"matrices: saw 'expert', .*; did you mean experts"):
        MuonClip.from_module(model, matrices={"expert": (8, 8, 6)})


def test_what_is_no_model_is_refused_with_what_to_do():
    model = nn.Linear(4, 4)
    for wrong, said in (
        (lambda: MuonClip.from_module(model.parameters()), "give it the model itself"),
        (lambda: MuonClip(model.parameters()), r"use MuonClip.from_module\(model\)"),
        (lambda: MuonClip.from_module(model, adamw="weight"), r"write \['weight'\]"),
        (lambda: MuonClip.from_module(nn.LazyLinear(4)), "run one forward pass first"),
        (lambda: MuonClip.from_module(model.requires_grad_(False)), "require_muon=False"),
        (lambda: MuonClip([spec(nn.Parameter(torch.randn(4, 4, dtype=torch.complex64)))]), "saw complex numbers"),
        (lambda: MuonClip([spec(model.weight), spec(model.weight)]), "2 specs of 1 parameters"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lr", (-1, math.nan, "1e-3", None, True, torch.tensor(0.1))),
        ("weight_decay", (-0.1, "a", math.inf)),
        ("momentum", (1.5, 1, -1, "x")),
        ("ns_steps", (0, -1, 2.5)),
        ("ns_dtype", ("bf16", torch.int32)),
        ("update_rms", (-1, 0)),
        ("adam_betas", (0.9, (0.9,), (1.5, 0.9), None)),
        ("adam_eps", (-1, 0)),
        ("adam_grad_clip", (-1,)),
        ("adam_lr_scale", (-1,)),
        ("qk_clip_tau", (0, -5, math.nan, "x")),
    ],
)
def test_a_setting_that_no_step_could_be_made_with_is_refused(name, values):
    for value in values:
        with pytest.raises(ValueError, match=r"MuonClip: \w+: saw .*, expected"):
            MuonClip.from_module(nn.Linear(4, 4), **{name: value})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_goes_on_as_the_original(copied):
    model = build()
    optimizer = make_muonclip(model)
    scores = torch.full((3, 2), 150.0)
    give_gradients(model)
    optimizer.step(max_scores=scores)
    other, other_optimizer = copied((model, optimizer))
    for each, its_optimizer in ((model, optimizer), (other, other_optimizer)):
        give_gradients(each)
        its_optimizer.step(max_scores=scores)
    same_tensors(snapshot(model), snapshot(other))


def test_state_of_other_parameters_is_refused():
    def made(*sizes: int, order: str = "ab") -> MuonClip:
        model = nn.ModuleDict({name: nn.Linear(*sizes, bias=False) for name in order})
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer = MuonClip.from_module(model)
        optimizer.step()
        return optimizer

    saved = made(4, 6).state_dict()
    made(4, 6).load_state_dict(saved)
    for other, said in (
        (made(4, 7), r"a.weight: saw state of shape \(6, 4\), expected \(7, 4\)"),
        (made(4, 6, order="ba"), "saw a.weight by muon, expected b.weight by muon"),
        (made(4, 6, order="abc"), "saw nothing more, expected c.weight"),
    ):
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ValueError, match=said):
            other.load_state_dict(saved)
        assert str(before) == str(other.state_dict())
    for wrong in ({"a": 1}, torch.optim.AdamW([nn.Parameter(torch.ones(2))]).state_dict()):
        with pytest.raises(ValueError, match="it is another model's"):
            made(4, 6).load_state_dict(wrong)


def test_what_became_of_a_parameter_is_told_before_anything_changes():
    model = nn.ModuleDict({"w": nn.Linear(8, 8), "table": nn.Embedding(9, 8, sparse=True)})
    optimizer = MuonClip.from_module(model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    before = snapshot(model)
    model["table"].weight.grad = model["table"].weight.grad.to_sparse()
    with pytest.raises(ValueError, match="table.weight: saw a sparse gradient"):
        optimizer.step()
    same_tensors(before, snapshot(model))
    model["table"].weight.grad = None
    model["w"].weight.data = model["w"].weight.data.T.contiguous().T
    with pytest.raises(ValueError, match="w.weight: saw a parameter that is not contiguous"):
        optimizer.step()
    model.to(torch.bfloat16)
    model["w"].weight.grad = torch.randn(8, 8, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="w.weight: saw a gradient in torch.bfloat16 and state in torch.float32"):
        optimizer.step()


def test_a_vocabulary_as_large_as_the_model_is_wide_does_not_give_all_of_it_to_adamw():
    names = ("query", "key", "down", "head")
    model = nn.ModuleDict({"table": nn.Embedding(64, 64), **{name: nn.Linear(64, 64, bias=False) for name in names}})
    with pytest.raises(ValueError, match=r"saw 4 linear layers .* query.weight, .*, \.\.\.; expected one"):
        MuonClip.from_module(model)
    found = routes(model, adamw=["head"])
    assert found["head.weight"] == "head" and found["table.weight"] == "embedding"
    assert all(found[f"{name}.weight"] == "matrix" for name in names[:3])


def test_a_step_without_maxima_is_refused_where_there_is_a_clip_to_do():
    model = build()
    give_gradients(model)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"saw no max_scores.*qk_clip_tau=None"):
        make_muonclip(model).step()
    same_tensors(before, snapshot(model))


@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_chunks_hold_every_matrix_once_and_no_more_than_so_many(most):
    """Pieces of 5, 1, 2 and 4 matrices, cut and joined."""
    counts = (5, 1, 2, 4)
    tensors = [torch.arange(count * 6.0).view(count, 2, 3) + 100 * index for index, count in enumerate(counts)]
    chunks = list(muonclip._chunks([muonclip._Piece(t, t, t, t) for t in tensors], most))
    assert all(0 < sum(len(piece.values) for piece in chunk) <= most for chunk in chunks)
    assert torch.equal(torch.cat([piece.values for chunk in chunks for piece in chunk]), torch.cat(tensors))
    assert len(chunks) == {1: 12, 2: 6, 3: 5, 100: 1}[most]
