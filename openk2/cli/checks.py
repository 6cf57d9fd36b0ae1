"""Commands that count, audit and prove."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from openk2.cli.command import command, open_console, overridden


def add_params(commands: Any) -> None:
    parser = command(
        commands, "params", _params, "count a model: parameters, FLOPs, cache", "openk2 params k2_1t --json"
    )
    parser.add_argument("preset", help="tiny, small, moonlight_16b_a3b or k2_1t")
    parser.add_argument("--context", type=int, default=4096, help="tokens at which attention's FLOPs are counted")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def _params(arguments: argparse.Namespace) -> None:
    from openk2.commands.params import count, describe

    figures = count(arguments.preset, arguments.context)
    open_console(arguments).result(json.dumps(figures, indent=2) if arguments.json else describe(figures))


def add_audit(commands: Any) -> None:
    from openk2.recipes import tiny_pretrain

    parser = command(
        commands,
        "audit-optimizer",
        _audit,
        "which parameter goes to which optimizer, as which matrices, at which scale",
        "openk2 audit-optimizer tiny",
        tiny_pretrain,
    )
    parser.add_argument("preset", help="tiny, small, moonlight_16b_a3b or k2_1t")
    parser.add_argument(
        "--engine",
        choices=("fsdp", "ep", "deepspeed"),
        help="instead: ten steps sharded against ten dense ones, by parameter, of the preset's first layers",
    )
    parser.add_argument("--processes", type=int, help="of the sharded side (default 2)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def _audit(arguments: argparse.Namespace) -> int:
    from openk2.recipes import pretrain_recipe

    for option in arguments.overrides:
        if option.startswith("--") and not option.startswith(("--model.", "--optim.")):
            raise ValueError(f"audit-optimizer: saw {option}, expected settings of model and optim, which it looks at")
    if arguments.engine is None and arguments.processes is not None:
        raise ValueError("--processes: saw it without --engine, expected both, for it is of the sharded side")
    config = overridden(pretrain_recipe(arguments.preset), arguments)
    console = open_console(arguments)
    if arguments.engine is None:
        from openk2.commands.params import audit_table

        console.result(audit_table(config, as_json=arguments.json))
        return 0
    from openk2.commands.sharded_audit import compare, describe, small_enough

    processes = 2 if arguments.processes is None else arguments.processes
    found = compare(small_enough(config.model), config.optim, arguments.engine, processes=processes)
    console.result(json.dumps(found, indent=2) if arguments.json else describe(found))
    return 0 if found["passed"] else 1


def add_show_sample(commands: Any) -> None:
    example = "openk2 show-sample out/speedrun/synth/trajectories.jsonl --tokenizer out/speedrun/base"
    parser = command(commands, "show-sample", _show_sample, "print a dialogue with its loss mask coloured", example)
    parser.add_argument("data", type=Path, help="chat JSONL")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with a tokenizer")
    parser.add_argument("--index", type=int, default=0, help="which dialogue, from 0")


def _show_sample(arguments: argparse.Namespace) -> None:
    from openk2.chat.codec import Codec
    from openk2.commands.show_sample import coloured
    from openk2.data.dialogues import read_dialogue

    dialogue = read_dialogue(arguments.data, arguments.index)
    styled = sys.stdout.isatty() or os.environ.get("FORCE_COLOR")
    print(coloured(dialogue, Codec.load(arguments.tokenizer), styled=bool(styled)))


def add_verify_resume(commands: Any) -> None:
    example = "openk2 verify-resume tiny"
    parser = command(
        commands,
        "verify-resume",
        _verify_resume,
        "prove that a killed run ends bit for bit where a whole one does",
        example,
    )
    parser.add_argument("preset", help="tiny or small")
    parser.add_argument("--stages", default="pretrain,sft,rl", help="comma-separated")
    parser.add_argument("--steps", type=int, default=6, help="of each stage; it is killed half-way")
    parser.add_argument("--out", type=Path, help="folder to work in (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def _verify_resume(arguments: argparse.Namespace) -> int:
    from openk2.commands.verify_resume import verify

    stages = [name.strip() for name in arguments.stages.split(",")]
    return verify(
        arguments.preset, stages, arguments.steps, arguments.out, open_console(arguments), as_json=arguments.json
    )


def add_compare_modes(commands: Any) -> None:
    parser = command(
        commands,
        "compare-modes",
        _compare_modes,
        "prove the deterministic arithmetic of generation here, and measure the fast one against it",
        "openk2 compare-modes out/speedrun/instruct",
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder")
    parser.add_argument("--prompts", type=int, default=14, help="how many")
    parser.add_argument("--tokens", type=int, default=48, help="sampled after each")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts and of what is drawn")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def _compare_modes(arguments: argparse.Namespace) -> int:
    for name in ("prompts", "tokens"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name}: saw {getattr(arguments, name)}, expected at least 1")
    if arguments.seed < 0:
        raise ValueError(f"--seed: saw {arguments.seed}, expected 0 or more")
    import torch

    from openk2.checkpoint.variant import load
    from openk2.commands.compare_modes import compare, describe

    model, codec = load(arguments.checkpoint, dtype=torch.bfloat16)
    console = open_console(arguments)
    found = compare(
        model,
        None if codec is None else codec.tokenizer,
        num_prompts=arguments.prompts,
        new_tokens=arguments.tokens,
        seed=arguments.seed,
        progress=console.line,
    )
    console.result(json.dumps(found, indent=2) if arguments.json else describe(found))
    return 0 if found["passed"] else 1
