"""Kernels that are compiled beside a running engine: it goes on meanwhile, and says the same with them."""

from __future__ import annotations

import threading

import pytest
import torch

from openk2.config import MODEL_PRESETS
from openk2.engine import Engine, EngineSettings
from openk2.model.model import Model
from openk2.ops import fused
from openk2.protocols import SamplingParams


@pytest.mark.slow
@pytest.mark.timeout(600)  # compiling takes up to a minute where nothing is cached
def test_an_engine_goes_on_while_kernels_are_compiled_and_reads_with_them_after() -> None:
    available, reason = fused.fusion_available()
    if not available:
        pytest.skip(reason)
    engine = Engine(Model(MODEL_PRESETS["tiny"], compute_dtype=torch.bfloat16).init_weights(0))
    sequence = torch.randint(4096, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    written = engine.score([sequence])[0]
    thread = threading.Thread(target=engine.compile_kernels)
    try:
        thread.start()
        answers = 0
        while thread.is_alive():
            (completion,) = engine([sequence[: 20 + answers % 7]], SamplingParams(max_new_tokens=4))
            assert len(completion.ids) == 4
            answers += 1
        assert answers and fused._enabled
        compiled = engine.score([sequence])[0]
        assert abs(compiled - written).max() < 0.3 and abs(compiled - written).mean() < 0.02  # roundings of bf16
        before = compiled_graphs()
        engine([sequence], SamplingParams(max_new_tokens=1))
        assert compiled_graphs() == before, "something was left to be compiled while a prompt is read"
    finally:
        thread.join()
        fused.set_fusion(False)


def compiled_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def test_the_deterministic_mode_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openk2.engine.engine.fusion_available", lambda: pytest.fail("asked for a compiler"))
    model = Model(MODEL_PRESETS["tiny"], compute_dtype=torch.bfloat16).init_weights(0)
    Engine(model, EngineSettings(attention="invariant")).compile_kernels()


def test_without_a_compiler_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openk2.engine.engine.fusion_available", lambda: (False, "a test"))
    Engine(Model(MODEL_PRESETS["tiny"], compute_dtype=torch.bfloat16).init_weights(0)).compile_kernels()
    assert not fused._enabled
