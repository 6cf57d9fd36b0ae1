"""Which dtype products run in on this machine, and how fast its matrix product is.

bf16 products are several times faster than fp32 ones where the processor has
instructions for them, and many times slower where it has not: so it is timed,
not guessed, once per run folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_SHAPE = (2048, 512, 1024)  # rows, inner, columns: a projection of a small model


def matmul_flops_per_s(dtype: torch.dtype, repeats: int = 6) -> float:
    """The best of `repeats` timings of one product, in floating-point operations a second."""
    rows, inner, columns = _SHAPE
    left = torch.ones(rows, inner, dtype=dtype)
    right = torch.ones(inner, columns, dtype=dtype)
    best = min(_seconds(left, right) for _ in range(repeats))
    return 2 * rows * inner * columns / best


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    begin = time.perf_counter()
    left @ right
    return time.perf_counter() - begin


def choose_dtype(asked: str, say: Callable[[str], None]) -> str:
    """`asked`, or for "auto" the faster of bf16 and fp32; `say` is told why."""
    if asked != "auto":
        return asked
    bf16, fp32 = matmul_flops_per_s(torch.bfloat16), matmul_flops_per_s(torch.float32)
    chosen = "bf16" if bf16 > fp32 else "fp32"
    say(f"dtype auto: bf16 {bf16 / 1e9:.0f} GFLOP/s, fp32 {fp32 / 1e9:.0f} GFLOP/s on this CPU; chose {chosen}")
    return chosen
