"""The compiled kernels against the same functions as written, at shapes they were not compiled for."""

from __future__ import annotations

import pytest
import torch

from openk2.ops import fused
from openk2.ops.attention import Tiling, document_attention
from openk2.ops.cross_entropy import linear_log_prob
from openk2.ops.experts import routed_experts
from openk2.ops.fused import fusion_available, rms_norm, set_fusion, swiglu_mlp


def everything(tokens: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Every operation once, forward and backward, from the same random numbers each time it is called."""
    generator = torch.Generator().manual_seed(tokens)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    results: list[torch.Tensor] = []

    def run(function, *inputs: torch.Tensor) -> None:
        out = function(*inputs)
        results.extend((out.detach(), *torch.autograd.grad(out.float().square().sum(), inputs)))

    starts = torch.zeros(2, tokens, dtype=torch.int64)
    starts[1, tokens // 2 :] = tokens // 2
    chosen = torch.rand(tokens, 8, generator=generator).topk(2).indices
    run(lambda x, w: rms_norm(x, w, 1e-6), draw(tokens, 32), draw(32))
    run(swiglu_mlp, draw(tokens, 16), draw(48, 16), draw(16, 24))
    run(
        lambda q, k, v: document_attention(q, k, v, Tiling(starts), 0.3)[0], *(draw(2, 3, tokens, 16) for _ in range(3))
    )
    run(lambda h, w: linear_log_prob(h, w, chosen[:, 0]), draw(tokens, 16), draw(40, 16))
    run(
        lambda x, w, g, d: routed_experts(x, chosen, w.sigmoid(), g, d),
        *(draw(tokens, 16), draw(tokens, 2), draw(8, 48, 16), draw(8, 16, 24)),
    )
    return results


@pytest.mark.slow
@pytest.mark.timeout(600)  # compiling takes about a minute
def test_compiled_equals_as_written():
    available, reason = fusion_available()
    if not available:
        pytest.skip(reason)
    try:
        for dtype, rounding in ((torch.float32, 2e-6), (torch.bfloat16, 2.0**-7)):
            for tokens in (24, 37, 300):
                set_fusion(False)
                written = everything(tokens, dtype)
                set_fusion(True)
                compiled = everything(tokens, dtype)
                for index, (a, b) in enumerate(zip(compiled, written, strict=True)):
                    assert a.dtype == b.dtype
                    assert float((a.double() - b.double()).norm()) <= rounding * float(b.double().norm()), index
    finally:
        set_fusion(False)


def test_no_compiler_is_said_and_not_fatal(monkeypatch):
    monkeypatch.setattr(fused.shutil, "which", lambda name: None)
    assert fusion_available() == (False, "no C++ compiler found")
