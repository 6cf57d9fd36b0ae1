"""What QK-Clip does to attention's logits and to the loss, and what else would do it.

    python benchmarks/qk_clip_ablation.py [--quick] [--json FILE] [--picture FILE.svg]

All runs train the model of `_learning` with Muon at several times its best rate (benchmarks/muonclip_vs_adamw.py),
where attention logits grow until the rate decays; they differ in one thing:

- `muon`: no clip, the other variants' peer
- `muonclip`: QK-Clip at `TAU`, 30 as in the K2 report's small ablation (appendix D), for so few steps do not lead far
  beyond its 100
- `muon_split`: no clip, queries and keys orthogonalised head by head
- `softcap`: no clip, attention's logits capped at TAU * tanh(logit / TAU); reported are the logits before the cap

Rows `logits/...` hold the largest logit of any head and step (median over seeds; ratio: the peer's by ours), rows
`loss/...` the validation loss (ratio: the peer's by ours) and the 95% interval of its difference from the peer's,
`overshoot` how far above tau the logits stood when the clip acted, by head and step.

Rows `collapse/...` are of runs in whose middle the first MoE layer's router is made to send all tokens to the same
experts, from which the router's bias and its gradients lead back. Each is compared with its twin, the run of the same
seed without the collapse: steps until the training loss, averaged over `WINDOW` steps, is within `NEAR` nats of the
twin's (0 where it never was further away); the largest excess of that average; the validation loss less the twin's; the
largest logit in the layers other than the collapsed one over the `AFTER` steps after the collapse, by the twin's. There
"ours" is with, "peer" without the clip; a run that does not recover counts with all its steps after the collapse
(`recovered` says which did).

Limits: one small model, a few hundred steps, one rate; a model that trains for longer at a lower rate meets other
logits. Intervals are Student's t over seeds.
"""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import torch
from _learning import Learnt, Run, begin, learn, make, mean_and_interval
from _rows import Rows

from openk2.config import OptimConfig
from openk2.observe.files import write_atomic
from openk2.observe.svg import Axis, Series, line_picture

RATE, TAU = 0.07, 30.0
STEPS, COLLAPSE_AT = 180, 60
SEEDS = (1, 2, 3)
WINDOW, NEAR, AFTER = 10, 0.05, 40
MUON = OptimConfig(lr=RATE, qk_clip_tau=None)
CLIPPED = dataclasses.replace(MUON, qk_clip_tau=TAU)
VARIANTS: dict[str, tuple[OptimConfig, float | None]] = {
    "muon": (MUON, None),
    "muonclip": (CLIPPED, None),
    "muon_split": (dataclasses.replace(MUON, muon_split=True), None),
    "softcap": (MUON, TAU),
}
NAMES = {
    "muon": "Muon, no clip",
    "muonclip": f"MuonClip, tau {TAU:g}",
    "muon_split": "Muon Split, no clip",
    "softcap": f"soft cap {TAU:g}, before the cap",
}
Figures = dict[str, Any]  # what `measure` keeps of a run


def measure(run: Run) -> dict[str, Any]:
    learnt = learn(run)
    return {
        "unit": "logit",
        "ours": float(learnt.max_scores.max()),
        "n": 1,
        "run": {
            "seed": run.seed,
            "dtype": run.dtype,
            "validation": learnt.validation,
            "losses": _rounded(torch.tensor(learnt.losses)),
            "largest": _rounded(learnt.max_scores.amax(2)),  # [steps, L]
            "overshoot": _rounded(_overshoot(learnt)),
            "clipped_steps": int((learnt.gamma < 1).any(2).any(1).sum()),
            "busiest": _rounded(_busiest(learnt, run.collapsed)),
            "seconds": round(learnt.seconds, 1),
        },
    }


def _overshoot(learnt: Learnt) -> torch.Tensor:
    """Largest logit by tau, of every head and step where the clip acted: gamma is tau by the logit."""
    return 1 / learnt.gamma[learnt.gamma < 1]


def _busiest(learnt: Learnt, layer: int) -> torch.Tensor:
    """The share of a layer's choices that went to its most chosen expert, step by step."""
    counts = learnt.expert_counts[:, layer].double()
    return counts.amax(1) / counts.sum(1)


def _rounded(values: torch.Tensor) -> list[Any]:
    rounded: list[Any] = values.double().mul(1e4).round().div(1e4).tolist()
    return rounded


class Ablation:
    def __init__(self, rows: Rows, dtype: str, steps: int, collapse_at: int, seeds: tuple[int, ...]) -> None:
        self.rows, self.collapse_at, self.seeds = rows, collapse_at, seeds
        runs = {}
        for seed in seeds:
            for name, (optim, softcap) in VARIANTS.items():
                run = Run(optim, steps, seed, dtype, softcap)
                runs[f"run/{name}/seed={seed}"] = run
                if name in ("muon", "muonclip"):
                    runs[f"run/{name}/collapsed/seed={seed}"] = dataclasses.replace(run, collapse_at=collapse_at)
        made = dict(zip(runs, make(rows, runs, measure), strict=True))
        self.runs: dict[str, list[Figures]] = {
            kind: [made[f"run/{kind}/seed={seed}"]["run"] for seed in seeds]
            for kind in (*VARIANTS, "muon/collapsed", "muonclip/collapsed")
        }

    def add(self, name: str, **figures: Any) -> None:
        if self.rows.missing(name):
            self.rows.add(name, n=len(self.seeds), **figures)

    def variants(self) -> None:
        """The variants' largest logits and losses, and the clip's overshoot."""
        for name in VARIANTS:
            self.logits(name)
            self.loss(name)
        self.overshoot()

    def logits(self, name: str) -> None:
        ours, theirs = ([_largest(run) for run in self.runs[kind]] for kind in (name, "muon"))
        self.add(
            f"logits/{name}",
            unit="logit",
            ours=statistics.median(ours),
            peer=statistics.median(theirs),
            peer_name=NAMES["muon"],
            ratio=statistics.median(theirs) / statistics.median(ours),
            spread=[min(ours), max(ours)],
            by_seed=ours,
            last=[max(run["largest"][-1]) for run in self.runs[name]],
            rate=RATE,
            steps=len(self.runs[name][0]["losses"]),
        )

    def loss(self, name: str) -> None:
        ours, theirs = ([run["validation"] for run in self.runs[kind]] for kind in (name, "muon"))
        mean, interval = mean_and_interval(ours)
        difference, difference_interval = mean_and_interval([a - b for a, b in zip(ours, theirs, strict=True)])
        self.add(
            f"loss/{name}",
            unit="nats",
            ours=mean,
            peer=statistics.mean(theirs),
            peer_name=NAMES["muon"],
            ratio=statistics.mean(theirs) / mean,
            spread=interval,
            by_seed=ours,
            difference=difference,
            difference_interval=difference_interval,
        )

    def overshoot(self) -> None:
        clipped = self.runs["muonclip"]
        overshoot = torch.tensor([value for run in clipped for value in run["overshoot"]] or [1.0])
        quantiles = [float(overshoot.quantile(q)) for q in (0.5, 0.9, 0.99, 1.0)]
        self.add(
            "overshoot",
            unit="largest logit / tau",
            ours=quantiles[0],
            peer=None,
            peer_name=None,
            ratio=None,
            spread=[float(overshoot.min()), float(overshoot.max())],
            quantiles=dict(zip(("50", "90", "99", "max"), quantiles, strict=True)),
            clips=[len(run["overshoot"]) for run in clipped],  # heads times steps, by seed
            clipped_steps=[run["clipped_steps"] for run in clipped],
            tau=TAU,
        )

    def collapses(self) -> None:
        """What a collapsed router does, with the clip and without it."""
        found = {name: [self._against_twin(name, i) for i in range(len(self.seeds))] for name in ("muonclip", "muon")}
        self.with_by_without(found)
        self.balanced_again(found)

    def with_by_without(self, found: dict[str, list[Figures]]) -> None:
        """A row for each measure of collapsed runs."""
        units = {
            "recovery": "steps until the loss is near the twin's",
            "largest_excess": "nats above the twin",
            "validation_excess": "nats above the twin",
            "other_layers": "largest logit / the twin's",
        }
        for measured, unit in units.items():
            ours, theirs = ([figures[measured] for figures in found[name]] for name in ("muonclip", "muon"))
            mean, interval = mean_and_interval(ours)
            self.add(
                f"collapse/{measured}",
                unit=unit,
                ours=mean,
                peer=statistics.mean(theirs),
                peer_name=NAMES["muon"],
                ratio=statistics.mean(theirs) / mean if mean else None,
                spread=interval,
                peer_spread=mean_and_interval(theirs)[1],
                by_seed=ours,
                peer_by_seed=theirs,
            )

    def balanced_again(self, found: dict[str, list[Figures]]) -> None:
        """A row for each optimizer's routers, with all figures of its runs."""
        for name, all_figures in found.items():
            self.add(
                f"collapse/{name}",
                unit="steps until the router is balanced again",
                ours=statistics.mean(figures["unbalanced"] for figures in all_figures),
                peer=None,
                peer_name=None,
                ratio=None,
                spread=[f(figures["unbalanced"] for figures in all_figures) for f in (min, max)],
                collapsed_at=self.collapse_at,
                by_seed=all_figures,
            )

    def _against_twin(self, name: str, index: int) -> Figures:
        run, twin = self.runs[f"{name}/collapsed"][index], self.runs[name][index]
        losses, twins = (torch.tensor(part["losses"][self.collapse_at :]) for part in (run, twin))
        excess = (losses - twins).unfold(0, min(WINDOW, len(losses)), 1).mean(1)
        worst = int(excess.argmax())
        near = [step for step in range(worst, len(excess)) if excess[step] < NEAR]
        recovery = near[0] + 1 if near else len(losses)
        end = self.collapse_at + AFTER
        # The first MoE layer, whose router collapses, follows the dense layer's number 0.
        largest, of_twin = (torch.tensor(part["largest"])[self.collapse_at : end] for part in (run, twin))
        others = [layer for layer in range(largest.shape[1]) if layer != 1]
        usual = max(twin["busiest"][self.collapse_at :])
        unbalanced = [step for step, share in enumerate(run["busiest"][self.collapse_at :]) if share > usual]
        return {
            "recovery": recovery if excess[worst] >= NEAR else 0,
            "recovered": bool(near),
            "largest_excess": float(excess[worst]),
            "validation_excess": run["validation"] - twin["validation"],
            "other_layers": float(largest[:, others].max() / of_twin[:, others].max()),
            # Of every layer, the collapsed and the twin's.
            "largest_by_layer": [_rounded(part.amax(0)) for part in (largest, of_twin)],
            "unbalanced": max(unbalanced, default=-1) + 1,
        }

    def picture(self, path: Path) -> None:
        """The largest logit of any head by step, one line a variant: the median over seeds."""
        lines = []
        for colour, name in enumerate(VARIANTS):
            seeds = [[max(layers) for layers in run["largest"]] for run in self.runs[name]]
            steps = range(1, max(map(len, seeds)) + 1)
            medians = [statistics.median(seed[step - 1] for seed in seeds if len(seed) >= step) for step in steps]
            lines.append(Series(NAMES[name], list(steps), medians, colour))
        title = f"Largest attention logit, Muon at a rate of {RATE:g}"
        reference = (TAU, "tau")
        write_atomic(
            path, line_picture(title, lines, Axis("step"), Axis("largest logit", log=True), reference=reference)
        )


def _largest(run: Figures) -> float:
    return max(max(layers) for layers in run["largest"])


def main() -> None:
    rows, dtype = begin(__doc__.splitlines()[0], picture="draw the largest logits by step into this SVG file")
    ablation = (
        Ablation(rows, dtype, 12, 4, SEEDS[:2]) if rows.quick else Ablation(rows, dtype, STEPS, COLLAPSE_AT, SEEDS)
    )
    ablation.variants()
    ablation.collapses()
    if path := rows.paths["picture"]:
        ablation.picture(path)


if __name__ == "__main__":
    main()
