"""MuonClip: Muon for matrices, AdamW for the rest, and QK-Clip, as one torch Optimizer.

Invariants: a step with a non-finite gradient changes nothing, momentum
included; gradient clipping touches AdamW's raw gradients only and never an
orthogonalised update; equal matrices of all layers go through Newton-Schulz in
one stack, each by itself. The parameters' routes and logical matrices are the
model's declarations (`ParameterSpec`), never guesses from names.

Sharding is not written here: the maths sees whole matrices, which a
`Placement` brings together where parameters lie on several processes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from openk2.config.run import OptimConfig
from openk2.optim.muon import apply_update_, momentum_, orthogonalise, update_scale
from openk2.optim.placement import WHOLE
from openk2.optim.qk_clip import qk_clip_
from openk2.optim.refusals import refuse_settings, refuse_unfit, refuse_unknown
from openk2.optim.specs import module_specs
from openk2.protocols import ParameterSpec, Placement, QKGroup


@dataclass(frozen=True)
class StepReport:
    """What a step did: gradient norm before clipping, update RMS by route and role (before the
    learning rate), gamma per layer and head (None without QK-Clip), and whether it was skipped."""

    grad_norm: float
    update_rms: dict[str, float] = field(default_factory=dict)
    gamma: Tensor | None = None
    skipped: bool = False


# Elements of a chunk: in bf16 a few megabytes, so that a chunk and its products stay in a cache, and so that what the
# step needs beside the state does not grow with the model (benchmarks/muon_step.py). Matrices that are cut over
# processes come together all of one shape at a time.
CHUNK = 2**20


@dataclass(frozen=True)
class _Piece:
    """The part of a parameter that lies here, with its gradient and momentum."""

    parameter: Tensor
    values: Tensor
    gradient: Tensor
    momentum: Tensor

    def stacked(self, shape: tuple[int, int]) -> _Piece:
        """Seen as its matrices [count, rows, columns]."""
        views = (t.view(-1, *shape) for t in (self.values, self.gradient.contiguous(), self.momentum))
        return _Piece(self.parameter, *views)

    def slice(self, first: int, last: int) -> _Piece:
        return _Piece(self.parameter, *(t[first:last] for t in (self.values, self.gradient, self.momentum)))


def _moved(piece: _Piece, group: dict[str, Any]) -> Tensor:
    return momentum_(piece.momentum, piece.gradient, group["momentum"], group["nesterov"])


def _chunks(pieces: Iterable[_Piece], most: int) -> Iterator[list[_Piece]]:
    """The matrices of all pieces in order, about `most` of them at a time."""
    most = max(most, 1)
    chunk: list[_Piece] = []
    room = most
    for piece in pieces:
        for first in range(0, len(piece.values), most):
            part = piece.slice(first, first + most)
            if chunk and len(part.values) > room:
                yield chunk
                chunk, room = [], most
            chunk.append(part)
            room -= len(part.values)
    if chunk:
        yield chunk


def _said(entry: tuple[str | None, str | None] | None) -> str:
    return "nothing more" if entry is None else f"{entry[1]} by {entry[0]}"


class MuonClip(torch.optim.Optimizer):
    """K2's optimizer.

    `specs` declare each parameter's route and matrices (`Model.parameter_specs()`),
    `qk_groups` the layers that QK-Clip scales (`Model.qk_groups()`; none: no
    clip). Without one Muon parameter it refuses to be made, unless `require_muon`
    is False. `nesterov` is Moonlight's first footnote; False is K2's Algorithm 1
    as it is printed. Each step takes the step's maximum attention scores [L, H]:

        optimizer = MuonClip(model.parameter_specs(), model.qk_groups(), lr=2e-4)
        optimizer.step(max_scores=stats.max_scores)
    """

    def __init__(
        self,
        specs: Iterable[ParameterSpec],
        qk_groups: Sequence[QKGroup] = (),
        *,
        lr: float = 2e-4,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        ns_dtype: torch.dtype = torch.bfloat16,
        update_rms: float = 0.2,
        cautious_weight_decay: bool = False,
        qk_clip_tau: float | None = 100.0,
        adam_lr_scale: float = 1.0,
        adam_betas: tuple[float, float] = (0.9, 0.95),
        adam_eps: float = 1e-8,
        adam_grad_clip: float = 1.0,
        require_muon: bool = True,
        placement: Placement = WHOLE,
    ) -> None:
        if not isinstance(adam_betas, tuple | list) or len(adam_betas) != 2:
            raise ValueError(f"MuonClip: adam_betas: saw {adam_betas!r}, expected two numbers")
        refuse_settings(
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            ns_steps=ns_steps,
            ns_dtype=ns_dtype,
            update_rms=update_rms,
            qk_clip_tau=qk_clip_tau,
            adam_lr_scale=adam_lr_scale,
            adam_beta1=adam_betas[0],
            adam_beta2=adam_betas[1],
            adam_eps=adam_eps,
            adam_grad_clip=adam_grad_clip,
        )
        specs, qk_groups = list(specs), tuple(qk_groups)
        refuse_unknown(specs, qk_groups)
        by_route: dict[str, list[ParameterSpec]] = defaultdict(list)
        for spec in specs:
            by_route[spec.route].append(spec)
        for spec in by_route["muon"]:
            refuse_unfit(spec)
        if require_muon and not by_route["muon"]:
            raise ValueError(
                "MuonClip: saw no parameter routed to Muon, expected at least one matrix; "
                "declare the model's matrices, or choose AdamW alone (optim.name adamw, or require_muon=False)"
            )
        self.qk_groups = qk_groups
        self.qk_clip_tau = qk_clip_tau
        self.placement = placement
        self.specs = by_route["muon"] + by_route["adamw"]
        muon = {
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "ns_dtype": ns_dtype,
            "update_rms": update_rms,
            "lr_scale": 1.0,
        }
        adam = {"betas": adam_betas, "eps": adam_eps, "grad_clip": adam_grad_clip, "lr_scale": adam_lr_scale}
        settings: dict[str, dict[str, Any]] = {"muon": muon, "adamw": adam}
        groups: list[dict[str, Any]] = [
            {
                "params": [spec.parameter for spec in by_route[route]],
                "names": [spec.name for spec in by_route[route]],
                "route": route,
                **settings[route],
            }
            for route in ("muon", "adamw")
            if by_route[route]
        ]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "cautious": cautious_weight_decay})
        self._spec_of = {spec.parameter: spec for spec in self.specs}

    @classmethod
    def from_module(
        cls,
        module: torch.nn.Module,
        *,
        adamw: Sequence[str] = (),
        matrices: Mapping[str, tuple[int, int, int]] | None = None,
        qk_groups: Sequence[QKGroup] = (),
        **settings: Any,
    ) -> MuonClip:
        """For any torch model: its matrices by Muon, embeddings, output head and vectors by AdamW.

        `adamw` names more parameters that AdamW is to take, `matrices` the (count, rows, columns) of parameters that
        hold several (`module_specs` says how the routes are found).
        """
        return cls(module_specs(module, adamw, matrices), qk_groups, **settings)

    def __getstate__(self) -> dict[str, Any]:
        """What copies are made of; torch's own leaves out what it does not know."""
        ours = ("specs", "qk_groups", "qk_clip_tau", "placement", "_spec_of")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in ours}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave of an optimizer of parameters named, shaped and routed alike; else ValueError."""
        saved = state_dict.get("param_groups", ()) if isinstance(state_dict, dict) else ()
        theirs = [(group.get("route"), name) for group in saved for name in group.get("names", [None])]
        ours = [(group["route"], name) for group in self.param_groups for name in group["names"]]
        for seen, expected in itertools.zip_longest(theirs, ours):
            if seen != expected:
                raise ValueError(
                    f"load_state_dict: saw {_said(seen)}, expected {_said(expected)}; it is another model's"
                )
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, moments in state_dict.get("state", {}).items():
            local = self.placement.local(parameters[index])
            for tensor in moments.values():
                if tensor.ndim and tensor.numel() != local.numel():
                    raise ValueError(
                        f"load_state_dict: {ours[index][1]}: saw state of shape {tuple(tensor.shape)}, expected "
                        f"{tuple(local.shape)}; it is another model's"
                    )
        super().load_state_dict(state_dict)

    @classmethod
    def from_config(
        cls,
        specs: Iterable[ParameterSpec],
        qk_groups: Sequence[QKGroup],
        config: OptimConfig,
        placement: Placement = WHOLE,
    ) -> MuonClip:
        """The optimizer that a run's `optim` section asks for.

        `name` "adamw" is the baseline: every parameter takes AdamW's route, and no head is clipped.
        """
        baseline = config.name == "adamw"
        return cls(
            [ParameterSpec(s.name, s.parameter, "adamw", s.role) for s in specs] if baseline else specs,
            () if baseline else qk_groups,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            nesterov=config.nesterov,
            ns_steps=config.ns_steps,
            ns_dtype=torch.float32 if config.ns_dtype == "fp32" else torch.bfloat16,
            update_rms=config.update_rms,
            cautious_weight_decay=config.cautious_weight_decay,
            qk_clip_tau=None if baseline else config.qk_clip_tau,
            adam_lr_scale=config.adam_lr_scale,
            adam_betas=(config.adam_beta1, config.adam_beta2),
            adam_eps=config.adam_eps,
            adam_grad_clip=config.adam_grad_clip,
            require_muon=not baseline,
            placement=placement,
        )

    @torch.no_grad()
    def step(self, closure: None = None, *, max_scores: Tensor | None = None) -> StepReport:  # type: ignore[override]
        """One update from the gradients in place, then QK-Clip with `max_scores` fp32 [L, H], which are to be the
        maxima over all micro-batches and processes. Without them it is a ValueError where there is a clip to do."""
        if closure is not None:
            raise ValueError("MuonClip.step: saw a closure, expected gradients computed beforehand")
        self._check_scores(max_scores)
        self._check_gradients()
        return self.placement.update(lambda: self._update(max_scores))

    def _update(self, max_scores: Tensor | None) -> StepReport:
        # A score that is not finite spoils the norm, so that all processes skip the step or none does.
        spoilt = max_scores is not None and not bool(torch.isfinite(max_scores).all())
        grad_norm = self._norm([p for group in self.param_groups for p in group["params"]], spoilt=spoilt)
        if not math.isfinite(grad_norm):
            return StepReport(grad_norm, skipped=True)
        # By route and role: the sum of the update's squares and the number of its elements.
        squares = {f"{spec.route}.{spec.role}": torch.zeros(2, dtype=torch.float64) for spec in self.specs}
        for group in self.param_groups:
            if group["route"] == "muon":
                self._muon(group, squares)
            else:
                self._adamw(group, squares)
        names = sorted(squares)
        sums = self.placement.total(torch.cat([squares[name] for name in names])).view(-1, 2).tolist()
        rms = {name: (total / count) ** 0.5 for name, (total, count) in zip(names, sums, strict=True) if count}
        gamma = None
        if self.qk_groups and self.qk_clip_tau is not None and max_scores is not None:
            gamma = qk_clip_(self.qk_groups, max_scores, self.qk_clip_tau, self.placement)
        return StepReport(grad_norm, rms, gamma)

    def _check_scores(self, max_scores: Tensor | None) -> None:
        if not self.qk_groups or (max_scores is None and self.qk_clip_tau is None):
            return
        if max_scores is None:
            raise ValueError(
                "MuonClip.step: saw no max_scores, expected the step's, for QK-Clip was given layers to scale; "
                "train without it by qk_clip_tau=None"
            )
        expected = (len(self.qk_groups), self.qk_groups[0].num_heads)
        if not isinstance(max_scores, Tensor):
            raise ValueError(
                f"MuonClip.step: saw max_scores {type(max_scores).__name__}, expected a tensor of shape {expected}"
            )
        if tuple(max_scores.shape) != expected:
            raise ValueError(
                f"MuonClip.step: saw max_scores of shape {tuple(max_scores.shape)}, expected [layers, heads] {expected}"
            )

    def _check_gradients(self) -> None:
        """ValueError, before anything has changed, for what became of a parameter since the optimizer was made."""
        for spec in self.specs:
            gradient = self.placement.gradient(spec.parameter)
            if gradient is None:
                continue
            moment = self.state.get(spec.parameter, {}).get("momentum" if spec.route == "muon" else "exp_avg")
            if gradient.layout != torch.strided:
                raise ValueError(f"MuonClip.step: {spec.name}: saw a sparse gradient, expected a dense one")
            if moment is not None and moment.dtype != gradient.dtype:
                raise ValueError(
                    f"MuonClip.step: {spec.name}: saw a gradient in {gradient.dtype} and state in {moment.dtype}; "
                    "make the optimizer after the model's dtype is settled"
                )
            if spec.route == "muon" and not self.placement.local(spec.parameter).is_contiguous():
                raise ValueError(
                    f"MuonClip.step: {spec.name}: saw a parameter that is not contiguous in memory any more, expected "
                    "the layout it had when the optimizer was made"
                )

    def _norm(self, parameters: Iterable[Tensor], *, spoilt: bool = False) -> float:
        """Euclidean norm of the gradients, over all processes; nan where one of them says that its step is spoilt."""
        grads = [grad for grad in map(self.placement.gradient, parameters) if grad is not None]
        norms = torch._foreach_norm(grads) if grads else []
        squares = [float(norm) ** 2 for norm in norms]
        here = torch.tensor([math.nan if spoilt else sum(squares)], dtype=torch.float64)
        return math.sqrt(float(self.placement.total(here)))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only what the constructor was given can be optimised: a parameter needs its `ParameterSpec`."""
        if "route" not in param_group:
            raise ValueError("MuonClip: saw a new parameter group, expected every parameter's spec when it is made")
        super().add_param_group(param_group)

    def _muon(self, group: dict[str, Any], squares: dict[str, Tensor]) -> None:
        """Matrices of one shape, from whatever parameters, are orthogonalised together, a chunk at a time."""
        by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if self.placement.gradient(parameter) is not None:
                matrices = self._spec_of[parameter].matrices
                assert matrices is not None
                by_shape[matrices[1:]].append(parameter)
        iterate = functools.partial(orthogonalise, steps=group["ns_steps"], dtype=group["ns_dtype"])
        for shape, parameters in by_shape.items():
            cut = [p for p in parameters if self.placement.is_cut(p, shape)]
            whole = [self._piece(p).stacked(shape) for p in parameters if not self.placement.is_cut(p, shape)]
            for chunk in _chunks(whole, CHUNK // (shape[0] * shape[1])):
                ahead = [_moved(piece, group) for piece in chunk]
                updates = iterate(torch.cat(ahead)).split([len(a) for a in ahead])
                self._apply(chunk, updates, shape, group, squares)
            if cut:
                pieces = [self._piece(p) for p in cut]
                ahead = [_moved(piece, group) for piece in pieces]
                updates = self.placement.through_whole(iterate, ahead, cut, shape, group["ns_dtype"])
                self._apply(pieces, updates, shape, group, squares)

    def _piece(self, parameter: Tensor) -> _Piece:
        gradient, state = self.placement.gradient(parameter), self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        return _Piece(parameter, self.placement.local(parameter), gradient, state["momentum"])

    def _apply(
        self,
        pieces: Sequence[_Piece],
        updates: Sequence[Tensor],
        shape: tuple[int, int],
        group: dict[str, Any],
        squares: dict[str, Tensor],
    ) -> None:
        lr, scale = group["lr"] * group["lr_scale"], update_scale(*shape, group["update_rms"])
        step, decay = torch.tensor(lr * scale), torch.tensor(lr * group["weight_decay"])
        for piece, update in zip(pieces, updates, strict=True):
            total = apply_update_(piece.values, update, step, decay, group["cautious"])
            self._count(squares, piece.parameter, total * scale**2, update.numel())

    def _count(self, squares: dict[str, Tensor], parameter: Tensor, total: Tensor, elements: int) -> None:
        spec = self._spec_of[parameter]
        squares[f"{spec.route}.{spec.role}"] += torch.tensor([float(total), elements], dtype=torch.float64)

    def _adamw(self, group: dict[str, Any], squares: dict[str, Tensor]) -> None:
        given = [(p, self.placement.gradient(p)) for p in group["params"]]
        owners, grads = [p for p, grad in given if grad is not None], [grad for _, grad in given if grad is not None]
        parameters = [self.placement.local(p) for p in owners]
        states = [self.state[p] for p in owners]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        norm = self._norm(owners)  # on every process, whether or not it holds any of these
        if not grads:
            return
        if group["grad_clip"]:
            torch._foreach_mul_(grads, min(group["grad_clip"] / (norm + 1e-6), 1.0))
        before = [p.clone() for p in parameters]
        lr = group["lr"] * group["lr_scale"]
        adamw(
            parameters,
            grads,
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=lr,
            weight_decay=0.0 if group["cautious"] else group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        if lr:
            decay = lr * group["weight_decay"]
            for owner, parameter, old in zip(owners, parameters, before, strict=True):
                pull = old * decay
                if group["cautious"]:
                    pull = torch.where((old - parameter) * old > 0, pull, 0.0)
                    parameter.sub_(pull)
                update = old.sub_(pull).sub_(parameter)
                self._count(squares, owner, update.square().sum() / lr**2, update.numel())
