"""MuonClip: Muon for matrices, AdamW for the rest, and QK-Clip, as one torch Optimizer.

Invariants: a step with a non-finite gradient changes nothing, momentum
included; gradient clipping touches AdamW's raw gradients only and never an
orthogonalised update; equal matrices of all layers go through Newton-Schulz in
one stack, each by itself. The parameters' routes and logical matrices are the
model's declarations (`ParameterSpec`), never guesses from names.

Left out: sharding. The maths sees whole matrices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from openk2.config.run import OptimConfig
from openk2.optim.muon import nesterov_, newton_schulz, update_scale
from openk2.optim.qk_clip import qk_clip_
from openk2.protocols import ParameterSpec, QKGroup


@dataclass(frozen=True)
class StepReport:
    """What a step did: gradient norm before clipping, update RMS by route and role (before the
    learning rate), gamma per layer and head (None without QK-Clip), and whether it was skipped."""

    grad_norm: float
    update_rms: dict[str, float] = field(default_factory=dict)
    gamma: Tensor | None = None
    skipped: bool = False


class MuonClip(torch.optim.Optimizer):
    """K2's optimizer.

    `specs` declare each parameter's route and matrices (`Model.parameter_specs()`),
    `qk_groups` the layers that QK-Clip scales (`Model.qk_groups()`; none: no
    clip). Without one Muon parameter it refuses to be made, unless `require_muon`
    is False. Each step takes the step's maximum attention scores [L, H]:

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
        ns_steps: int = 5,
        update_rms: float = 0.2,
        qk_clip_tau: float | None = 100.0,
        adam_betas: tuple[float, float] = (0.9, 0.95),
        adam_eps: float = 1e-8,
        adam_grad_clip: float = 1.0,
        require_muon: bool = True,
    ) -> None:
        by_route: dict[str, list[ParameterSpec]] = defaultdict(list)
        for spec in specs:
            by_route[spec.route].append(spec)
        unknown = set(by_route) - {"muon", "adamw"}
        if unknown:
            raise ValueError(f"MuonClip: saw route {sorted(unknown)[0]!r}, expected 'muon' or 'adamw'")
        if require_muon and not by_route["muon"]:
            raise ValueError(
                "MuonClip: saw no parameter routed to Muon, expected at least one matrix; "
                "declare the model's matrices or choose optim.name adamw"
            )
        self.qk_groups = tuple(qk_groups)
        self.qk_clip_tau = qk_clip_tau
        self.specs = by_route["muon"] + by_route["adamw"]
        muon = {"momentum": momentum, "ns_steps": ns_steps, "update_rms": update_rms}
        adam = {"betas": adam_betas, "eps": adam_eps, "grad_clip": adam_grad_clip}
        settings: dict[str, dict[str, Any]] = {"muon": muon, "adamw": adam}
        groups: list[dict[str, Any]] = [
            {"params": [spec.parameter for spec in by_route[route]], "route": route, **settings[route]}
            for route in ("muon", "adamw")
            if by_route[route]
        ]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self._spec_of = {id(spec.parameter): spec for spec in self.specs}

    @classmethod
    def from_config(cls, specs: Iterable[ParameterSpec], qk_groups: Sequence[QKGroup], config: OptimConfig) -> MuonClip:
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
            ns_steps=config.ns_steps,
            update_rms=config.update_rms,
            qk_clip_tau=None if baseline else config.qk_clip_tau,
            adam_betas=(config.adam_beta1, config.adam_beta2),
            adam_eps=config.adam_eps,
            adam_grad_clip=config.adam_grad_clip,
            require_muon=not baseline,
        )

    @torch.no_grad()
    def step(self, closure: None = None, *, max_scores: Tensor | None = None) -> StepReport:  # type: ignore[override]
        """One update from the gradients in place, then QK-Clip with `max_scores` fp32 [L, H]."""
        if closure is not None:
            raise ValueError("MuonClip.step: saw a closure, expected gradients computed beforehand")
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        grad_norm = float(torch.nn.utils.get_total_norm(grads))
        finite_scores = max_scores is None or bool(torch.isfinite(max_scores).all())
        if not (torch.isfinite(torch.tensor(grad_norm)) and finite_scores):
            return StepReport(grad_norm, skipped=True)
        squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for group in self.param_groups:
            if group["route"] == "muon":
                self._muon(group, squares)
            else:
                self._adamw(group, squares)
        rms = {name: (total / count) ** 0.5 for name, (total, count) in sorted(squares.items())}
        gamma = None
        if self.qk_groups and self.qk_clip_tau is not None and max_scores is not None:
            gamma = qk_clip_(self.qk_groups, max_scores, self.qk_clip_tau)
        return StepReport(grad_norm, rms, gamma)

    def _muon(self, group: dict[str, Any], squares: dict[str, list[float]]) -> None:
        """Matrices of one shape, from whatever parameters, are orthogonalised as one stack."""
        by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                matrices = self._spec_of[id(parameter)].matrices
                assert matrices is not None
                by_shape[matrices[1:]].append(parameter)
        for (rows, columns), parameters in by_shape.items():
            ahead = [self._look_ahead(parameter, group["momentum"]).view(-1, rows, columns) for parameter in parameters]
            stack = newton_schulz(torch.cat(ahead), group["ns_steps"])
            scale = update_scale(rows, columns, group["update_rms"])
            for parameter, update in zip(parameters, stack.split([len(a) for a in ahead]), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.view(-1, rows, columns).add_(update, alpha=-group["lr"] * scale)
                self._count(squares, parameter, update, scale)

    def _look_ahead(self, parameter: Tensor, mu: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        return nesterov_(state["momentum"], parameter.grad, mu)

    def _count(self, squares: dict[str, list[float]], parameter: Tensor, update: Tensor, scale: float) -> None:
        spec = self._spec_of[id(parameter)]
        total = squares[f"{spec.route}.{spec.role}"]
        total[0] += (float(torch.linalg.vector_norm(update, dtype=torch.float32)) * scale) ** 2
        total[1] += update.numel()

    def _adamw(self, group: dict[str, Any], squares: dict[str, list[float]]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        grads = [p.grad for p in parameters]
        if group["grad_clip"]:
            norm = torch.nn.utils.get_total_norm(grads)
            torch._foreach_mul_(grads, (group["grad_clip"] / (norm + 1e-6)).clamp(max=1.0))
        before = [p.clone() for p in parameters]
        states = [self.state[p] for p in parameters]
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
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        if group["lr"]:
            for parameter, old in zip(parameters, before, strict=True):
                decayed = old.mul_(1 - group["lr"] * group["weight_decay"])
                self._count(squares, parameter, decayed.sub_(parameter), 1 / group["lr"])
