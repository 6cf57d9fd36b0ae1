"""The engine's fast arithmetic against its deterministic one, on the same tokens, and a proof of the latter.

The deterministic engine samples; the fast one is made to take the same tokens.
Compared are log-probabilities and chosen experts token by token. That the
deterministic bits are the same in any company, for any cutting of prompts,
after prefix hits and in the trainer's forward pass is then tried on the machine
at hand, for it rests on how its products are computed.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import numpy as np

from openk2.chat.tokenizer import Tokenizer
from openk2.engine import Engine, EngineSettings, Request
from openk2.model.model import Model
from openk2.protocols import Completion, SamplingParams

LENGTHS = (1, 17, 63, 64, 65, 130, 300)  # tokens of prompts, on both sides of a block's edge


@dataclass
class _Forced:
    """A grammar that allows one sequence."""

    ids: Sequence[int]
    vocabulary: int

    def start(self, budget: int) -> _Forcing:
        assert budget >= len(self.ids)
        return _Forcing(self.ids, self.vocabulary)


class _Forcing:
    hopeless = done = False

    def __init__(self, ids: Sequence[int], vocabulary: int) -> None:
        self._ids, self._mask = iter(ids), np.ones(vocabulary, dtype=bool)

    def mask(self) -> np.ndarray:
        return self._mask

    def accept(self, _token: int) -> int:
        return next(self._ids)


def compare(
    model: Model,
    tokenizer: Tokenizer | None,
    *,
    num_prompts: int = 14,
    new_tokens: int = 48,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Figures of both arithmetics for a model in bf16; `passed` says whether the deterministic bits were the same
    everywhere. Without a tokenizer prompts are random tokens."""
    prompts = _prompts(model, tokenizer, num_prompts, new_tokens, seed)
    params = SamplingParams(max_new_tokens=new_tokens, temperature=1.0, seed=seed)
    exact, fast = Engine(model, EngineSettings(attention="invariant")), Engine(model)
    progress("sampling, each prompt alone")
    alone = _alone(model, prompts, params)
    checks = {}
    progress("the same together, in pieces, from the prefix tree, in training")
    checks["company"] = _share(alone, exact(prompts, params))
    checks["prefix hits"] = _share(alone, exact(prompts, params))
    pieces = Engine(model, EngineSettings(attention="invariant", step_tokens=max(16, num_prompts + 3)))
    checks["prompts in pieces"] = _share(alone, pieces(prompts, params))
    scores = exact.score([[*prompt, *c.ids] for prompt, c in zip(prompts, alone, strict=True)])
    trained = [tuple(map(float, s[len(p) - 1 :])) for s, p in zip(scores, prompts, strict=True)]
    checks["training's forward pass"] = sum(found == c.logprobs for found, c in zip(trained, alone, strict=True)) / len(
        prompts
    )
    progress("the fast arithmetic on the same tokens")
    grammars = [_Forced(completion.ids, model.config.vocab_size) for completion in alone]
    forced = fast(prompts, params, grammars=grammars)
    progress("timing")
    return {
        "prompts": len(prompts),
        "tokens": sum(len(completion.ids) for completion in alone),
        "seed": seed,
        "same_bits": checks,
        "passed": all(share == 1 for share in checks.values()),
        "fast": _differences(forced, alone),
        "slowdown": {
            f"{count} at once": _slowdown(fast, exact, prompts[-1], count, params) for count in (1, min(8, num_prompts))
        },
    }


def describe(figures: dict[str, Any]) -> str:
    fast = figures["fast"]
    lines = [f"{figures['prompts']} prompts, {figures['tokens']} sampled tokens, seed {figures['seed']}", ""]
    lines += ["deterministic: the same bits as alone"]
    lines += [f"  {name:<24} {share:7.1%} of prompts" for name, share in figures["same_bits"].items()]
    lines += ["", "fast against deterministic, the same tokens"]
    lines += [f"  log-probability, mean difference {fast['mean_difference']:.2e}, largest {fast['max_difference']:.2e}"]
    if fast["router_agreement"] is not None:
        lines += [f"  chosen experts in common {fast['router_agreement']:.3%}"]
        lines += [f"  choices (token and layer) that agree in all experts {fast['same_choices']:.3%}"]
    lines += [
        f"  time of the deterministic one, {name}: {ratio:.1f} times" for name, ratio in figures["slowdown"].items()
    ]
    return "\n".join(lines)


def _prompts(model: Model, tokenizer: Tokenizer | None, count: int, new_tokens: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    most = model.config.max_position_embeddings - new_tokens
    if most < 1:
        raise ValueError(f"compare-modes: saw {new_tokens} new tokens, expected fewer than the model's context")
    lengths = list(itertools.islice(itertools.cycle(min(length, most) for length in LENGTHS), count))
    if tokenizer is None:
        return [[rng.randrange(model.config.vocab_size) for _ in range(length)] for length in lengths]
    text = tokenizer.encode("\n\n".join(topics.values()))
    return [text[start : start + n] for n in lengths for start in [rng.randrange(len(text) - n)]]


def _alone(model: Model, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Completion]:
    """Each prompt with its own stream, nothing else running and nothing read before."""
    engine = Engine(model, EngineSettings(attention="invariant"))
    found = []
    for index, prompt in enumerate(prompts):
        sequence = engine.submit(Request(tuple(prompt), params, index))
        while engine.has_work:
            engine.step()
        engine.tree.clear()
        found.append(sequence.completion())
    return found


def _share(wanted: Sequence[Completion], found: Sequence[Completion]) -> float:
    """Of prompts whose tokens and log-probabilities are the same bits."""
    same = sum(a.ids == b.ids and a.logprobs == b.logprobs for a, b in zip(wanted, found, strict=True))
    return same / len(wanted)


def _differences(found: Sequence[Completion], wanted: Sequence[Completion]) -> dict[str, float | None]:
    left, right = ([value for completion in side for value in completion.logprobs] for side in (found, wanted))
    gaps = [abs(a - b) for a, b in zip(left, right, strict=True)]
    chosen = [np.concatenate([c.experts for c in side if c.experts is not None]) for side in (found, wanted)]
    shared = (chosen[0][..., :, None] == chosen[1][..., None, :]).any(-1)  # [tokens, L_moe, K]
    return {
        "mean_difference": statistics.fmean(gaps),
        "max_difference": max(gaps),
        "router_agreement": float(shared.mean()) if shared.size else None,
        "same_choices": float(shared.all(-1).mean()) if shared.size else None,
    }


def _slowdown(fast: Engine, exact: Engine, prompt: Sequence[int], count: int, params: SamplingParams) -> float:
    """Median ratio of the times both need for the same tokens after the first, alternating."""
    ratios = []
    for _ in range(4):
        times = [_decoding_seconds(engine, prompt, count, params) for engine in (fast, exact)]
        ratios.append(times[1] / times[0])
    return statistics.median(ratios[1:])  # products are compiled in the first round


def _decoding_seconds(engine: Engine, prompt: Sequence[int], count: int, params: SamplingParams) -> float:
    sequences = [engine.submit(Request(tuple(prompt), params, index)) for index in range(count)]
    while any(sequence.num_sampled == 0 for sequence in sequences):
        engine.step()
    begin = time.perf_counter()
    while engine.has_work:
        engine.step()
    return time.perf_counter() - begin
