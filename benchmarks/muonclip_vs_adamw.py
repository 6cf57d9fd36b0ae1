"""How many tokens AdamW needs for the validation loss that MuonClip reaches with fewer.

    python benchmarks/muonclip_vs_adamw.py [--quick] [--json FILE]

Both train the model of `_learning` on the same rows in the same order, with the same warm-up, stable and decay shares
and weight decay 0.1. MuonClip is K2's (momentum 0.95, AdamW at the same rate for embedding, head and norms, QK-Clip at
100); AdamW takes every parameter, with betas 0.9 and 0.95, epsilon 1e-8 and gradients clipped to a norm of 1.

First each optimizer's rate is chosen, by one seed at the full budget, from a geometric grid that goes on at its edge
until the best rate lies inside (rows `rates/...`; `interior` says whether it does). Then, for other seeds, AdamW trains
with the full budget at its best rates, of which the one with the lowest mean loss counts, and MuonClip at its one best
rate with the full budget and smaller ones, each a whole schedule of its own. Where MuonClip's loss, interpolated in the
logarithm of the tokens, equals AdamW's is what the row `tokens_to_equal_loss` compares: the ratio is AdamW's tokens by
MuonClip's, with a 95% interval by Student's t over the seeds' logarithms. The row `loss_at_equal_tokens` compares both
at the full budget; its ratio is AdamW's loss by MuonClip's.

In favour of AdamW are more rates, a choice among its best by all seeds, a rate tuned for the budget it trains with
(where MuonClip's smaller budgets have the full one's), and the curve of loss by tokens, which is convex, so that
interpolation takes MuonClip's tokens for more than they are. The warm-up is a fifth of the run for both: a twentieth,
eight steps, was too short for AdamW. QK-Clip's threshold is out of reach at these rates: it is Muon that is compared.

Limits: one small model, half a token a parameter, one batch size and one shape of schedule; rates are tuned, nothing
else is; tokens are counted, not time (a step of MuonClip takes a little longer, benchmarks/muon_step.py).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from _learning import LENGTH, ROWS, Run, begin, learn, make, mean_and_interval
from _rows import Rows

from openk2.config import OptimConfig

STEPS = 150  # the full budget: 0.6M tokens
WARMUP = 0.2
GRIDS = {
    "muonclip": (0.0063, 0.01, 0.016, 0.025, 0.04),
    "adamw": (0.0025, 0.004, 0.0063, 0.01, 0.016, 0.025),
}
MORE = 3  # rates added at most to each grid
FINALISTS = 3  # of AdamW's rates train with all seeds
SHARES = (0.45, 0.65, 1.0)  # of the full budget, MuonClip's
SEEDS = (1, 2, 3, 4)  # the grids have seed 0
EDGE = "the best rate is at the edge of its grid: the comparison does not show this optimizer at its best"

Wanted = tuple[str, float, float, int]  # a run: optimizer, rate, share of the full budget, seed


def measure(run: Run) -> dict[str, Any]:
    learnt = learn(run)
    return {
        "unit": "nats",
        "ours": learnt.validation,
        "n": 1,
        # In a dictionary figures keep all their digits.
        "run": {
            "optimizer": run.optim.name,
            "rate": run.optim.lr,
            "seed": run.seed,
            "dtype": run.dtype,
            "tokens": run.tokens,
            "loss": learnt.validation,
            "largest_logit": float(learnt.max_scores.max()),
            "seconds": round(learnt.seconds, 1),
        },
    }


class Comparison:
    def __init__(self, rows: Rows, dtype: str, steps: int) -> None:
        self.rows, self.dtype, self.steps = rows, dtype, steps
        self.tokens = steps * ROWS * LENGTH  # the full budget

    def losses(self, wanted: Sequence[Wanted]) -> dict[Wanted, float]:
        """Validation losses of runs."""
        runs = {}
        for name, rate, share, seed in wanted:
            optim = OptimConfig(name=name, lr=rate, weight_decay=0.1)
            run = Run(optim, round(share * self.steps), seed, self.dtype, warmup=WARMUP)
            runs[f"run/{name}/rate={rate:g}/tokens={run.tokens}/seed={seed}"] = run
        made = make(self.rows, runs, measure)
        return {key: row["run"]["loss"] for key, row in zip(wanted, made, strict=True)}

    def best_rates(self, grids: dict[str, Sequence[float]], more: int) -> dict[str, list[float]]:
        """Each optimizer's rates, best first by seed 0; a grid whose best is at an edge goes on there, `more` times."""
        for left in range(more, -1, -1):
            found = self.losses([(name, rate, 1.0, 0) for name, grid in grids.items() for rate in grid])
            tables = {name: {rate: found[name, rate, 1.0, 0] for rate in grid} for name, grid in grids.items()}
            order = {name: sorted(table, key=table.__getitem__) for name, table in tables.items()}
            at_edge = [name for name, grid in grids.items() if order[name][0] in (grid[0], grid[-1])]
            if not at_edge or not left:
                break
            for name in at_edge:
                grids[name] = longer(grids[name], order[name][0])
        for name, table in tables.items():
            if name in at_edge:
                print(f"{name}: {EDGE}")
            if self.rows.missing(f"rates/{name}"):
                self.rows.add(
                    f"rates/{name}",
                    unit="nats",
                    ours=min(table.values()),
                    n=len(table),
                    spread=[min(table.values()), max(table.values())],
                    interior=name not in at_edge,
                    best_rate=order[name][0],
                    rates=list(table),
                    losses=list(table.values()),
                )
        return order

    def compare(self, rates: dict[str, list[float]], shares: Sequence[float], seeds: Sequence[int]) -> None:
        """AdamW's tokens by those with which MuonClip reaches the same loss, and both losses at the full budget."""
        finalists, ours = rates["adamw"][:FINALISTS], rates["muonclip"][0]
        adamw: list[Wanted] = [("adamw", rate, 1.0, seed) for rate in finalists for seed in seeds]
        muon: list[Wanted] = [("muonclip", ours, share, seed) for share in shares for seed in seeds]
        found = self.losses([*muon, *adamw])
        peers = {rate: [found["adamw", rate, 1.0, seed] for seed in seeds] for rate in finalists}
        best = min(finalists, key=lambda rate: statistics.mean(peers[rate]))
        curves = [[found["muonclip", ours, share, seed] for share in shares] for seed in seeds]
        shared = {
            "peer_name": "AdamW at its best rate",
            "n": len(seeds),
            "rates": [ours, best],
            "seeds": list(seeds),
            "runs": {name: len(rates[name]) + len(part) for name, part in (("muonclip", muon), ("adamw", adamw))},
            "finalists": {f"{rate:g}": losses for rate, losses in peers.items()},
        }
        self.equal_loss(shares, curves, peers[best], shared)
        self.equal_tokens([curve[-1] for curve in curves], peers[best], shared)

    def equal_loss(
        self, shares: Sequence[float], curves: list[list[float]], targets: list[float], shared: dict[str, Any]
    ) -> None:
        """The row of tokens with which MuonClip, whose losses by share `curves` has seed by seed, reaches `targets`."""
        if not self.rows.missing("tokens_to_equal_loss"):
            return
        met = [crossing(shares, curve, target) for curve, target in zip(curves, targets, strict=True)]
        mean, interval = mean_and_interval([-math.log(share) for share, _ in met])
        self.rows.add(
            "tokens_to_equal_loss",
            unit="tokens",
            ours=self.tokens / math.exp(mean),
            peer=self.tokens,
            ratio=math.exp(mean),
            spread=[math.exp(end) for end in interval],
            spread_is="95% interval, Student's t over the seeds' logarithms",
            goal=1.4,
            ratios=[1 / share for share, _ in met],
            # Where AdamW's loss lies outside MuonClip's budgets the ratio is a bound.
            inside=[inside for _, inside in met],
            shares=list(shares),
            muonclip_losses=curves,
            **shared,
        )

    def equal_tokens(self, ours: list[float], theirs: list[float], shared: dict[str, Any]) -> None:
        """The row of both optimizers' losses at the full budget, seed by seed."""
        if not self.rows.missing("loss_at_equal_tokens"):
            return
        mean, interval = mean_and_interval([peer - loss for loss, peer in zip(ours, theirs, strict=True)])
        self.rows.add(
            "loss_at_equal_tokens",
            unit="nats",
            ours=statistics.mean(ours),
            peer=statistics.mean(theirs),
            ratio=statistics.mean(theirs) / statistics.mean(ours),
            spread=interval,
            spread_is="95% interval of AdamW's loss less MuonClip's, Student's t over seeds",
            difference=mean,
            tokens=self.tokens,
            **shared,
        )


def longer(grid: Sequence[float], edge: float) -> list[float]:
    """One more rate beyond the edge, as far as the first two are apart."""
    factor = grid[1] / grid[0]
    added = edge / factor if edge == grid[0] else edge * factor
    return sorted([*grid, float(f"{added:.2g}")])


def crossing(shares: Sequence[float], losses: Sequence[float], target: float) -> tuple[float, bool]:
    """The share at which the loss has fallen to `target`, linear in the logarithm; or the nearest end, and False."""
    if target >= losses[0]:
        return shares[0], False
    for (before, high), (after, low) in zip(
        zip(shares, losses, strict=True), zip(shares[1:], losses[1:], strict=False), strict=False
    ):
        if high > target >= low:
            return before * (after / before) ** ((high - target) / (high - low)), True
    return shares[-1], False


def main() -> None:
    rows, dtype = begin(__doc__.splitlines()[0])
    if rows.quick:
        comparison = Comparison(rows, dtype, 10)
        comparison.compare(
            comparison.best_rates({"muonclip": (0.025, 0.04), "adamw": (0.004, 0.0063)}, 0), (0.5, 1.0), SEEDS[:2]
        )
    else:
        comparison = Comparison(rows, dtype, STEPS)
        comparison.compare(comparison.best_rates(dict(GRIDS), MORE), SHARES, SEEDS)


if __name__ == "__main__":
    main()
