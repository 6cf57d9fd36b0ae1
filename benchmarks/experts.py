"""The cost of a mixture-of-experts layer as experts are added and each token still goes to eight of them.

    python benchmarks/experts.py [--quick] [--json FILE]

Forward and backward of one layer (hidden 256, experts of 128) on 8,192 tokens, bf16, router included, from 16 to 384
experts. The ratio is the speed with so many experts over that with 16, measured in turn; 1 would be a cost that follows
active parameters alone. Weights' gradients are as large as the weights, so some of the cost follows the total.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from _rows import Rows, in_turn

from openk2.config import MODEL_PRESETS
from openk2.model.moe import MixtureOfExperts

TOKENS, TOP_K = 8_192, 8


def layer(num_experts: int) -> Callable[[], None]:
    config = dataclasses.replace(MODEL_PRESETS["tiny"], n_routed_experts=num_experts, num_experts_per_tok=TOP_K)
    module = MixtureOfExperts(config)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.02)
    x = torch.randn(TOKENS, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    towards = torch.randn_like(x)

    def run() -> None:
        module.zero_grad()
        out, _ = module(x)
        (out * towards).sum().backward()

    return run


def main() -> None:
    rows = Rows(__doc__.splitlines()[0])
    torch.manual_seed(0)
    for num_experts in (64, 384) if rows.quick else (32, 64, 128, 256, 384):
        name = f"experts/{num_experts}"
        if rows.missing(name):
            taken = in_turn({"ours": layer(num_experts), "peer": layer(16)}, 5 if rows.quick else 9, warm=2)
            rows.times(name, taken, "the same with 16 experts", unit="tokens/s", amount=TOKENS)


if __name__ == "__main__":
    main()
