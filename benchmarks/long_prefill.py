"""Time and memory of one prefill of a small model against its length, up to 131,072 tokens.

    python benchmarks/long_prefill.py [--quick] [--json FILE]

The `tiny` model with room for 131,072 positions, bf16, one document, the state of the last position only. Each length
runs in a process of its own, whose peak resident memory is what is reported. The peer holds every score of one layer at
once (as many heads, in bf16, as explicit attention would): its bytes are counted, not run.
"""

from __future__ import annotations

import dataclasses
import resource
import time

import torch
from _rows import Rows, in_own_process

from openk2.config import MODEL_PRESETS
from openk2.model.model import Model

LENGTHS = (4_096, 16_384, 65_536, 131_072)


def prefill(length: int) -> tuple[float, float]:
    """Seconds and peak bytes of this process."""
    config = dataclasses.replace(MODEL_PRESETS["tiny"], max_position_embeddings=max(LENGTHS))
    model = Model(config).init_weights(0).to(torch.bfloat16).eval()
    model.compute_dtype = torch.bfloat16
    ids = torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.hidden_states(ids[:, :1_024], read=torch.tensor([1_023]))  # compiles
        begin = time.perf_counter()
        state, _ = model.hidden_states(ids, read=torch.tensor([length - 1]))
        model.logits(state)
    return time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    rows = Rows(__doc__.splitlines()[0])
    heads = MODEL_PRESETS["tiny"].num_attention_heads
    for length in LENGTHS[:2] if rows.quick else LENGTHS:
        name = f"prefill/{length}"
        if not rows.missing(name):
            continue
        taken, peak = in_own_process(prefill, length)
        explicit = 2 * heads * length**2
        rows.add(
            name,
            unit="bytes",
            ours=peak,
            peer=explicit,
            peer_name="the scores of one layer alone, counted",
            ratio=explicit / peak,
            n=1,
            spread=[],
            seconds=taken,
            tokens_per_s=length / taken,
        )


if __name__ == "__main__":
    main()
