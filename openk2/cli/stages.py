"""Commands that train or make data: one a stage of the recipe."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from openk2.cli.command import add_key_option, command, load_chat, made_by, open_console, overridden

# speedrun -----------------------------------------------------------------------------------------


def add_speedrun(commands: Any) -> None:
    from openk2.recipes import RECIPES, speedrun

    parser = command(
        commands, "speedrun", _speedrun, "the whole recipe, end to end, on this computer", "openk2 speedrun", speedrun
    )
    parser.add_argument("recipe", nargs="?", default="speedrun", choices=("speedrun", "smoke"), help="smoke: minutes")
    parser.add_argument("--out", type=Path, default=None, help="run folder (default out/RECIPE)")
    parser.set_defaults(recipes=RECIPES)


def _speedrun(arguments: argparse.Namespace) -> None:
    config = overridden(arguments.recipes[arguments.recipe](), arguments)
    from openk2.speedrun import speedrun

    speedrun(config, arguments.out or Path("out") / arguments.recipe, open_console(arguments))


# pretrain -----------------------------------------------------------------------------------------


def add_pretrain(commands: Any) -> None:
    from openk2.recipes import tiny_pretrain

    example = "openk2 pretrain tiny --data my_texts --train.steps 200"
    parser = command(commands, "pretrain", _pretrain, "train a base model on text", example, tiny_pretrain)
    parser.add_argument("preset", help="tiny, small, moonlight_16b_a3b or k2_1t")
    parser.add_argument("--data", help="a folder or file of text or JSONL (the same as --data.path)")
    parser.add_argument("--engine", help="fsdp or deepspeed (the same as --parallel.engine)")
    parser.add_argument("--zero", help="stage of DeepSpeed's ZeRO (the same as --parallel.zero)")
    parser.add_argument("--out", type=Path, help="run folder (default out/pretrain-PRESET)")


def _pretrain(arguments: argparse.Namespace) -> None:
    from openk2.recipes import pretrain_recipe

    config = pretrain_recipe(arguments.preset)
    if arguments.data is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=arguments.data))
    for name in ("engine", "zero"):
        if getattr(arguments, name) is not None:
            arguments.overrides += [f"--parallel.{name}", getattr(arguments, name)]
    config = overridden(config, arguments)
    from openk2.chat.codec import Codec
    from openk2.checkpoint.variant import export_variant
    from openk2.parallel.world import join_world, leave_world
    from openk2.pretrain import pretrain
    from openk2.pretrain.report import write_page

    out = arguments.out or Path("out") / f"pretrain-{arguments.preset}"
    world = join_world(config.parallel.dp)
    console = open_console(arguments, quiet=not world.first)
    model, tokenizer = pretrain(config, out, console, world)
    if world.first:
        console.line(f"report: {write_page(config, out, made_by())}")
        console.result(f"{export_variant(model, Codec(tokenizer), out / 'base', kind='base', made_by=made_by())}")
    leave_world()


# synth --------------------------------------------------------------------------------------------


def add_synth(commands: Any) -> None:
    from openk2.config import SynthConfig

    example = "openk2 synth --out out/synth --attempts 6000"
    parser = command(commands, "synth", _synth, "make tool-use trajectories and judge them", example, SynthConfig)
    parser.add_argument("--out", type=Path, default=Path("out/synth"), help="folder of trajectories.jsonl")


def _synth(arguments: argparse.Namespace) -> None:
    from openk2.config import SynthConfig
    from openk2.posttrain.synth import synthesise

    config = overridden(SynthConfig(), arguments)
    console = open_console(arguments)
    with console.progress("synthesising", unit="attempts") as bar:
        manifest = synthesise(config, arguments.out, lambda done, _total: bar.advance(done - bar.done))
    console.result(json.dumps(manifest, indent=2))
    console.line(f"wrote {arguments.out / 'trajectories.jsonl'}")


# sft and rl ---------------------------------------------------------------------------------------


def add_sft(commands: Any) -> None:
    from openk2.recipes import speedrun

    example = "openk2 sft out/speedrun/base --data my_dialogues.jsonl --out out/mine"
    parser = command(commands, "sft", _sft, "fine-tune a checkpoint on dialogues", example, lambda: speedrun().sft)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder in Hugging Face layout")
    parser.add_argument("--data", type=Path, required=True, help="chat JSONL in OpenAI's format, or trajectories.jsonl")
    parser.add_argument("--out", type=Path, default=Path("out/sft"), help="run folder; the model goes to OUT/model")


def _sft(arguments: argparse.Namespace) -> None:
    from openk2.recipes import speedrun

    config = overridden(speedrun().sft, arguments)
    from openk2.data.dialogues import read_dialogues
    from openk2.posttrain.sft import sft

    dialogues = read_dialogues(arguments.data)
    model, codec = load_chat(arguments.checkpoint, trained=True)
    sft(config, model, codec, dialogues, arguments.out, open_console(arguments))
    _export_instruct(model, codec, arguments)


def add_rl(commands: Any) -> None:
    from openk2.recipes import speedrun

    example = "openk2 rl out/speedrun/sft-model --data out/speedrun/synth/trajectories.jsonl --out out/rl"
    parser = command(
        commands, "rl", _rl, "improve a checkpoint by reinforcement learning", example, lambda: speedrun().rl
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder that has been fine-tuned")
    parser.add_argument("--data", type=Path, required=True, help="trajectories.jsonl of openk2 synth")
    parser.add_argument("--out", type=Path, default=Path("out/rl"), help="run folder; the model goes to OUT/model")
    parser.add_argument("--endpoint", metavar="URL", help=_ENDPOINT_HELP)
    parser.add_argument("--weights-folder", type=Path, metavar="FOLDER", help="with --endpoint: the server's")
    add_key_option(parser)


_ENDPOINT_HELP = "sample there: the /v1 of an openk2 serve --weights-folder FOLDER that serves this checkpoint"


def _rl(arguments: argparse.Namespace) -> None:
    from openk2.recipes import speedrun

    config = overridden(speedrun().rl, arguments)
    from openk2.data.dialogues import read_dialogues
    from openk2.engine.engine import Engine
    from openk2.engine.remote import RemoteSampler
    from openk2.posttrain.rl import rl

    endpoint, folder = arguments.endpoint, arguments.weights_folder
    if (endpoint is None) != (folder is None):
        raise ValueError("rl: saw one of --endpoint and --weights-folder, expected both or neither")

    dialogues = read_dialogues(arguments.data)
    model, codec = load_chat(arguments.checkpoint, trained=True)
    console = open_console(arguments)

    def make_sampler(policy: Any) -> Any:
        if endpoint is None:
            return Engine(policy)
        return RemoteSampler(endpoint, folder, policy, key_env=arguments.key_env)

    trust = rl(config, model, codec, dialogues, arguments.out, console, make_sampler=make_sampler)
    console.line(f"self-critique: {trust.verdict()}")
    _export_instruct(model, codec, arguments)


def _export_instruct(model: Any, codec: Any, arguments: argparse.Namespace) -> None:
    from openk2.checkpoint.variant import export_variant

    target = export_variant(model, codec, arguments.out / "model", kind="instruct", made_by=made_by())
    open_console(arguments).result(str(target))
