"""Forward and backward of the tiny model with compiled elementwise kernels against the same kernels run eagerly.

    python benchmarks/kernels.py [--quick] [--json FILE]

One process, the two sides in turn; the ratio is of the medians. Compile time
is not counted.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch

from openk2.config import MODEL_PRESETS
from openk2.model.model import Model
from openk2.observe.files import write_atomic
from openk2.observe.run_folder import git_commit
from openk2.ops.fused import fusion_available, set_fusion

TOKENS, LENGTH = 8_192, 512


def forward_backward(model: Model, ids: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        log_probs, stats = model.log_probs(ids, ids)
        (stats.balance_loss - log_probs.mean()).backward()  # type: ignore[no-untyped-call]
        model.zero_grad()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 9")
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    available, why = fusion_available()
    if not available:
        raise SystemExit(f"nothing to compare: {why}")
    config = MODEL_PRESETS["tiny"]
    model = Model(config, compute_dtype=torch.bfloat16).init_weights(0).train()
    ids = torch.randint(0, config.vocab_size, (TOKENS // LENGTH, LENGTH), generator=torch.Generator().manual_seed(0))
    run = forward_backward(model, ids)
    rates: dict[bool, list[float]] = {True: [], False: []}
    for round_number in range(1 + (3 if arguments.quick else 9)):
        for fused in (True, False):
            set_fusion(fused)
            begin = time.perf_counter()
            run()
            if round_number:  # the first one compiles
                rates[fused].append(TOKENS / (time.perf_counter() - begin))
    ours, peer = statistics.median(rates[True]), statistics.median(rates[False])
    row = {
        "name": "fwd_bwd/tiny",
        "unit": "tokens/s",
        "ours": round(ours),
        "peer": round(peer),
        "peer_name": "the same kernels, eager",
        "ratio": round(ours / peer, 2),
        "n": len(rates[True]),
        "spread": [round(min(rates[True])), round(max(rates[True]))],
        "device": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "commit": git_commit(),
    }
    print(json.dumps(row, indent=2))
    if arguments.json:
        write_atomic(arguments.json, json.dumps([row], indent=2) + "\n")


if __name__ == "__main__":
    main()
