"""A training step with MuonClip and QK-Clip against transformers' DeepseekV3 with torch's Muon and AdamW.

    python benchmarks/train_step.py [--quick] [--json FILE]

Both sides have the same shapes, rows of 512 tokens that are one document each, 16,384 tokens a step in micro-batches of
4,096, bf16 products over fp32 weights (the peer under autocast), and no balance loss. The peer runs at the best of its
settings, which is searched first: experts eager or by grouped products, attention by SDPA, with and without
torch.compile. Its optimizer is torch.optim.Muon on every matrix that ours takes, stacked experts given to it one by
one, and fused AdamW on the rest; it has no QK-Clip. Each side has a process of its own, and they take turns; both use
freed memory again, from which the peer gains as well. Compiling is not counted. Rows `full_step/...`, `fwd_bwd/...` and
`optimizer/...` of `tiny` and of `small` (117M parameters, "100m").
"""

from __future__ import annotations

import itertools
from functools import partial

import torch
import transformers
from _rows import Apart, Rows, in_turn, seconds
from torch import Tensor, nn

from openk2.checkpoint.hf_config import config_fields
from openk2.config import MODEL_PRESETS, ModelConfig, OptimConfig
from openk2.model.model import Model
from openk2.optim.muonclip import MuonClip

TOKENS, MICRO, LENGTH = 16_384, 4_096, 512


def batches(config: ModelConfig) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets [rows, LENGTH] of each micro-batch."""
    ids = torch.randint(config.vocab_size, (TOKENS // LENGTH, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    return [(part[:, :-1], part[:, 1:]) for part in ids.split(MICRO // LENGTH)]


class Ours:
    def __init__(self, config: ModelConfig, qk_clip_tau: float | None = 100.0) -> None:
        self.model = Model(config, compute_dtype=torch.bfloat16).init_weights(0).train()
        optim = OptimConfig(qk_clip_tau=qk_clip_tau)
        self.optimizer = MuonClip.from_config(self.model.parameter_specs(), self.model.qk_groups(), optim)
        self.model.qk_clip_tau = self.optimizer.qk_clip_tau
        self.batches = batches(config)
        self.max_scores = torch.zeros(config.num_hidden_layers, config.num_attention_heads)

    def forward_backward(self) -> None:
        self.optimizer.zero_grad()
        maxima = []
        for ids, targets in self.batches:
            log_probs, stats = self.model.log_probs(ids, targets)
            (-log_probs.sum() / TOKENS).backward()  # type: ignore[no-untyped-call]
            maxima.append(stats.max_scores)
        self.max_scores = torch.stack(maxima).amax(0)

    def update(self) -> None:
        self.optimizer.step(max_scores=self.max_scores)

    def step(self) -> None:
        self.forward_backward()
        self.update()


class Peer:
    """transformers' model and torch's optimizers."""

    def __init__(self, config: ModelConfig, experts: str, compiled: bool) -> None:
        fields = config_fields(config)
        fields.pop("architectures")
        fields.pop("model_type")
        built = transformers.DeepseekV3Config(**fields, attn_implementation="sdpa")
        built.use_cache = False
        built._experts_implementation = experts
        torch.manual_seed(0)
        self.model = transformers.DeepseekV3ForCausalLM(built).train()
        self.run = torch.compile(self.model) if compiled else self.model
        self.batches = batches(config)
        outside = ("embed_tokens", "lm_head")
        inside = {n: p for n, p in self.model.named_parameters() if p.ndim > 1 and not any(o in n for o in outside)}
        # A stack of experts as the matrices it holds: parameters of their own over the same memory.
        self.stacks = [(p, [nn.Parameter(part) for part in p.detach()]) for p in inside.values() if p.ndim == 3]
        matrices = [p for p in inside.values() if p.ndim == 2] + [part for _, parts in self.stacks for part in parts]
        self.muon = torch.optim.Muon(matrices, lr=3e-3, adjust_lr_fn="match_rms_adamw")
        rest = [p for name, p in self.model.named_parameters() if name not in inside]
        self.adamw = torch.optim.AdamW(rest, lr=3e-3, fused=True)

    def forward_backward(self) -> None:
        self.model.zero_grad()
        for ids, targets in self.batches:
            with torch.autocast("cpu", torch.bfloat16):
                logits = self.run(input_ids=ids).logits
                loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / TOKENS
            loss.backward()

    def update(self) -> None:
        for stack, parts in self.stacks:
            assert stack.grad is not None
            for part, gradient in zip(parts, stack.grad, strict=True):
                part.grad = gradient
        self.muon.step()
        self.adamw.step()

    def step(self) -> None:
        self.forward_backward()
        self.update()


def best_peer(config: ModelConfig, quick: bool) -> tuple[str, Apart]:
    """The fastest of the peer's settings that work here, of two passes each; and what it is."""
    timed: list[tuple[float, str, Apart]] = []
    for experts, compiled in itertools.product(("eager", "grouped_mm"), (False,) if quick else (False, True)):
        name = f"transformers {transformers.__version__}, experts {experts}, sdpa" + ", compiled" * compiled
        try:
            peer = Apart(Peer, config, experts, compiled)
            peer.run("forward_backward")
            taken = min(seconds(partial(peer.run, "forward_backward")) for _ in range(2))
        except RuntimeError as error:  # what does not run here is no candidate; it is said
            print(f"left out: {name}: {error}")
            continue
        print(f"candidate: {name}: {TOKENS / taken:,.0f} tokens/s", flush=True)
        timed.append((taken, name, peer))
    _, name, best = min(timed, key=lambda entry: entry[0])
    for _, _, peer in timed:
        if peer is not best:
            peer.close()
    return name, best


def main() -> None:
    rows = Rows(__doc__.splitlines()[0])
    for name, preset in (("tiny", "tiny"), ("100m", "small")):
        parts = ("full_step", "fwd_bwd", "optimizer")
        if (rows.quick and name != "tiny") or not any(rows.missing(f"{part}/{name}") for part in parts):
            continue
        config = MODEL_PRESETS[preset]
        peer_name, peer = best_peer(config, rows.quick)
        ours = Apart(Ours, config)
        rounds = 3 if rows.quick else {"tiny": 21, "100m": 7}[name]
        for part, method in zip(parts, ("step", "forward_backward", "update"), strict=True):
            if any(row["name"] == f"{part}/{name}" for row in rows.rows):
                continue
            if part == "optimizer":  # which needs gradients, where a run went on from the rows of the first two
                ours.run("forward_backward")
                peer.run("forward_backward")
            sides = {"ours": partial(ours.run, method), "peer": partial(peer.run, method)}
            taken = in_turn(sides, rounds, warm=1)
            unit = "ms" if part == "optimizer" else "tokens/s"
            rows.times(f"{part}/{name}", taken, peer_name, unit=unit, amount=1e3 if unit == "ms" else TOKENS)
        ours.close()
        peer.close()


if __name__ == "__main__":
    main()
