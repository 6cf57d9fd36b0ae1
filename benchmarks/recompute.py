"""Memory and time of training with and without selective recompute, against the length of a row.

    python benchmarks/recompute.py [--quick] [--json FILE]

Forward and backward of the `small` model on one row that is one document, bf16 products over fp32 weights. Rows
`memory/LENGTH`: the most that each side held above what stood before the pass (weights and their gradients), measured
as resident memory in a process of its own. Rows `time/LENGTH`: both sides in turn in one process. The ratios are of
memory kept by memory with recompute, and of time without by time with it.
"""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Callable
from pathlib import Path

import torch
from _rows import Rows, in_own_process, in_turn

from openk2.config import MODEL_PRESETS
from openk2.model.model import Model
from openk2.observe.memory import give_back_memory, keep_freed_memory

LENGTHS = (4_096, 8_192, 16_384, 32_768)


def training_pass(length: int, recompute: bool) -> Callable[[], None]:
    """Forward and backward over one row."""
    config = dataclasses.replace(MODEL_PRESETS["small"], max_position_embeddings=max(LENGTHS))
    model = Model(config, compute_dtype=torch.bfloat16).init_weights(0).train()
    model.recompute = recompute
    ids = torch.randint(config.vocab_size, (1, length + 1), generator=torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def run() -> None:
        log_probs, _ = model.log_probs(ids[:, :-1], ids[:, 1:])
        (-log_probs.mean()).backward()  # type: ignore[no-untyped-call]

    return run


def peak_memory(length: int, recompute: bool) -> int:
    """Bytes that a pass held at most, above what stood before it."""
    keep_freed_memory()
    training_pass(512, recompute)()  # compiles
    run = training_pass(length, recompute)
    give_back_memory()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    run()
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return peak - pages * resource.getpagesize()


def main() -> None:
    rows = Rows(__doc__.splitlines()[0])
    lengths = LENGTHS[:1] if rows.quick else LENGTHS
    for length in lengths:
        if rows.missing(f"memory/{length}"):
            held = {recompute: in_own_process(peak_memory, length, recompute) for recompute in (True, False)}
            rows.add(
                f"memory/{length}",
                unit="bytes",
                ours=held[True],
                peer=held[False],
                peer_name="the same without recompute",
                ratio=held[False] / held[True],
                n=1,
                spread=[],
            )
    for length in lengths:
        if rows.missing(f"time/{length}"):
            sides = {"ours": training_pass(length, True), "peer": training_pass(length, False)}
            taken = in_turn(sides, 3)
            rows.times(f"time/{length}", taken, "the same without recompute", unit="tokens/s", amount=length)


if __name__ == "__main__":
    main()
