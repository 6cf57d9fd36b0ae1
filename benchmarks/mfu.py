"""The share of the machine's bf16 matmul peak that a full training step reaches.

    python benchmarks/mfu.py [--quick] [--json FILE]

A step is forward, backward, head, loss, MuonClip and QK-Clip, on rows of 512
tokens that are one document each. Its FLOPs are 6 x the active parameters
without the embedding, plus causal attention forward and backward; what the
optimizer computes is not counted as useful. The peak is the best of six
products of a projection's size, measured before and after each step, the better of the two. Rows
`mfu/tiny`, `mfu/100m` and `mfu/1024` (hidden size 1,024, eight layers), 16,384
tokens a step.
"""

from __future__ import annotations

import dataclasses
import statistics

import torch
from _rows import Rows, seconds
from train_step import LENGTH, MICRO, TOKENS, Ours

from openk2.config import MODEL_PRESETS
from openk2.plan.flops import plan_flops
from openk2.train.precision import matmul_flops_per_s

WIDE = dataclasses.replace(
    MODEL_PRESETS["small"],
    hidden_size=1_024,
    intermediate_size=3_072,
    moe_intermediate_size=512,
    num_attention_heads=16,
    n_routed_experts=16,
)
SIZES = {"tiny": MODEL_PRESETS["tiny"], "100m": MODEL_PRESETS["small"], "1024": WIDE}


def main() -> None:
    rows = Rows(__doc__.splitlines()[0])
    for name, config in SIZES.items():
        if (rows.quick and name != "tiny") or not rows.missing(f"mfu/{name}"):
            continue
        ours = Ours(config)
        flops = plan_flops(config, context=LENGTH)
        work = TOKENS * (flops.six_n + 3 * flops.attention)
        shares, rates, peaks = [], [], []
        for number in range(1 + (3 if rows.quick else 5)):
            before = matmul_flops_per_s(torch.bfloat16)
            taken = seconds(ours.step)
            peak = max(before, matmul_flops_per_s(torch.bfloat16))
            if number:
                shares.append(work / taken / peak)
                rates.append(work / taken)
                peaks.append(peak)
        rows.add(
            f"mfu/{name}",
            unit="FLOP/s",
            ours=statistics.median(rates),
            peer=statistics.median(peaks),
            peer_name="the best large bf16 product, beside it",
            ratio=statistics.median(shares),
            n=len(shares),
            spread=[min(shares), max(shares)],
            tokens=TOKENS,
            micro_batch=MICRO,
        )


if __name__ == "__main__":
    main()
