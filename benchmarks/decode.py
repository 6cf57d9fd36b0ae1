"""Decoding with the latent cache against transformers' DeepseekV3 on the same weights and prompts.

    python benchmarks/decode.py [--quick] [--json FILE]

Decode only: prompts of 128 tokens are read first and not counted, then NEW tokens are sampled greedily for each of 1 or
32 sequences; a round is all of them. Weights are random, bf16. Ours is the engine as it serves, scheduling and sampling
included. The peer runs at the best of its settings, searched first: experts eager, grouped or batched, a dynamic or a
static cache, with and without torch.compile; a bare loop around its forward pass, which spares it the work of
`generate`. Each side has a process of its own and they take turns; compiling is not counted. Rows `decode/MODEL/bN` of
`tiny` (the preset) and `1b` (1B parameters, a fifth of them active); `bandwidth/MODEL`, the rate at which ours reads
weights and cache at batch 1, against that of summing a tensor of 1 GiB in the same rounds; `prefix/MODEL`, the times to
the first token of two requests that share a prefix of 2,048 tokens (1,984 for `tiny`, whose context is 2,048).
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from _rows import Apart, Rows, in_own_process, seconds

from openk2.checkpoint.hf import export_hf, load_hf
from openk2.config import MODEL_PRESETS, ModelConfig
from openk2.engine import Engine, EngineSettings, Request
from openk2.model.model import Model
from openk2.plan.parameters import plan_parameters
from openk2.protocols import SamplingParams

PROMPT = 128
ONE_BILLION = dataclasses.replace(
    MODEL_PRESETS["small"],
    vocab_size=32_768,
    hidden_size=1024,
    intermediate_size=4096,
    moe_intermediate_size=512,
    num_hidden_layers=10,
    num_attention_heads=16,
    n_routed_experts=60,
    num_experts_per_tok=7,
    q_lora_rank=512,
    kv_lora_rank=256,
)
MODELS = {"tiny": MODEL_PRESETS["tiny"], "1b": ONE_BILLION}
NEW = {"tiny": 256, "1b": 32}  # tokens of a round
CANDIDATES = [
    (experts, static, compiled)
    for experts, static, compiled in itertools.product(
        ("eager", "grouped_mm", "batched_mm"), (False, True), (False, True)
    )
    if static or not compiled  # a cache that grows would be compiled for anew with each token
]


def prompts(config: ModelConfig, count: int, length: int = PROMPT, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (count, length), generator=generator).tolist()


class Ours:
    def __init__(self, folder: Path, count: int, new: int) -> None:
        self.engine = Engine(load_hf(folder), EngineSettings())
        self.prompts = prompts(self.engine.model.config, count)
        self.params = SamplingParams(max_new_tokens=new + 1)
        self.begin()

    def begin(self) -> None:
        """Read the prompts; one token of each is sampled, which is not counted."""
        self.engine.tree.clear()
        sequences = [self.engine.submit(Request(tuple(p), self.params, i)) for i, p in enumerate(self.prompts)]
        while any(sequence.num_sampled == 0 for sequence in sequences):
            self.engine.step()

    def decode(self) -> None:
        while self.engine.has_work:
            self.engine.step()


class Peer:
    """transformers' model, and a greedy loop around its forward pass."""

    def __init__(self, folder: Path, count: int, new: int, experts: str, static: bool, compiled: bool) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, attn_implementation="sdpa", experts_implementation=experts
        ).eval()
        self.run = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.static, self.new = static, new
        self.prompts = torch.tensor(prompts(load_hf(folder).config, count))
        self.begin()

    @torch.inference_mode()
    def begin(self) -> None:
        room = self.prompts.shape[1] + self.new + 1
        config = self.model.config
        cache: Any = transformers.StaticCache(config=config, max_cache_len=room) if self.static else None
        out = self.model(input_ids=self.prompts, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self.cache, self.token = out.past_key_values, out.logits[:, -1:].argmax(-1)
        self.place = self.prompts.shape[1]

    @torch.inference_mode()
    def decode(self) -> None:
        for _ in range(self.new):
            position = torch.tensor([[self.place]]).expand(len(self.token), -1)
            out = self.run(input_ids=self.token, past_key_values=self.cache, position_ids=position, use_cache=True)
            self.token = out.logits[:, -1:].argmax(-1)
            self.place += 1


def round_of(side: Apart) -> float:
    """Seconds of one round's decoding; reading the prompts again comes before it."""
    side.run("begin")
    return seconds(partial(side.run, "decode"))


def best_peer(folder: Path, count: int, new: int, quick: bool) -> tuple[str, Apart]:
    """The fastest of the peer's settings that work here; and what it is."""
    found: list[tuple[float, str, Apart]] = []
    for experts, static, compiled in CANDIDATES[:2] if quick else CANDIDATES:
        name = f"transformers {transformers.__version__}, experts {experts}, {'static' if static else 'dynamic'} cache"
        name += ", compiled" * compiled
        try:
            side = Apart(Peer, folder, count, new, experts, static, compiled)
            round_of(side)
            taken = min(round_of(side) for _ in range(2))
        except RuntimeError as error:  # what does not run here is no candidate; it is said
            print(f"left out: {name}: {error}", flush=True)
            continue
        print(f"candidate: {name}: {count * new / taken:,.0f} tokens/s", flush=True)
        if found and found[0][0] <= taken:
            side.close()
            continue
        if found:
            found.pop()[2].close()
        found.append((taken, name, side))
    _, name, best = found[0]
    return name, best


class Summed:
    """A tensor of 1 GiB, whose sum takes as long as memory takes to be read."""

    def __init__(self) -> None:
        self.tensor = torch.ones(2**28)

    def add(self) -> None:
        self.tensor.sum()


def read_bytes(config: ModelConfig, context: float) -> float:
    """Of weights and cache for a token of one sequence: the embedding is one row, all the rest is read."""
    cache = config.num_hidden_layers * config.latent_dim * 2 * context
    return plan_parameters(config).active_with_head * 2 + cache


def prefix_seconds(folder: Path, shared: int) -> tuple[float, float]:
    """Times to the first token of two requests that share their first tokens; medians of five such pairs."""
    engine = Engine(load_hf(folder))
    firsts: list[float] = []
    seconds_: list[float] = []
    for number in range(6):
        generator = torch.Generator().manual_seed(number)
        beginning = torch.randint(engine.model.config.vocab_size, (shared + 32,), generator=generator).tolist()
        for taken, rest in ((firsts, beginning[shared : shared + 16]), (seconds_, beginning[shared + 16 :])):
            request = Request((*beginning[:shared], *rest), SamplingParams(max_new_tokens=1))
            engine.submit(request)
            taken.append(seconds(lambda: [engine.step() for _ in iter(lambda: engine.has_work, False)]))
    return statistics.median(firsts[1:]), statistics.median(seconds_[1:])  # products are compiled in the first pair


def main() -> None:
    rows = Rows(__doc__.splitlines()[0])
    for model, config in MODELS.items():
        if rows.quick and model != "tiny":
            continue
        with tempfile.TemporaryDirectory() as kept:
            folder = Path(kept) / model
            built = Model(config, compute_dtype=torch.bfloat16).init_weights(0)
            export_hf(built, folder, dtype=torch.bfloat16, model_card="", license_text="")
            for count in (1, 32):
                name = f"decode/{model}/b{count}"
                if rows.missing(name):
                    measure(rows, name, model, folder, count)
            if rows.missing(f"prefix/{model}"):
                first, second = in_own_process(prefix_seconds, folder, min(2048, config.max_position_embeddings - 64))
                rows.add(
                    f"prefix/{model}", unit="ms", first=first * 1e3, second=second * 1e3, ratio=first / second, n=5
                )


def measure(rows: Rows, name: str, model: str, folder: Path, count: int) -> None:
    new = NEW[model]
    peer_name, peer = best_peer(folder, count, new, rows.quick)
    ours = Apart(Ours, folder, count, new)
    summed = Apart(Summed) if count == 1 else None
    taken: dict[str, list[float]] = {"ours": [], "peer": []}
    sums: list[float] = []
    for number in range((3 if rows.quick else 9) + 1):
        for side, process in (("ours", ours), ("peer", peer))[:: -1 if number % 2 else 1]:
            spent = round_of(process)
            if number:
                taken[side].append(spent)
            if number and side == "ours" and summed is not None:
                sums.append(min(seconds(partial(summed.run, "add")) for _ in range(3)))
    rows.times(name, taken, peer_name, unit="tokens/s", amount=count * new)
    ours.close()
    peer.close()
    if summed is not None:
        summed.close()
        moved = read_bytes(MODELS[model], PROMPT + new / 2) * new
        per_byte = {"ours": [spent / moved for spent in taken["ours"]], "peer": [spent / 2**30 for spent in sums]}
        rows.times(f"bandwidth/{model}", per_byte, "summing a tensor of 1 GiB", unit="GB/s", amount=1e-9)


if __name__ == "__main__":
    main()
