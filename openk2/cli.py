"""The `openk2` command: one sub-command a stage, each a few lines that join configs, stages and engine.

Bad input ends with one line on stderr and exit code 2, Ctrl-C with 130.
Options with a dot set a field of the config (`--train.steps 200`); anything
unknown or without effect is refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from openk2.version import __version__

ConfigT = TypeVar("ConfigT")


class _Parser(argparse.ArgumentParser):
    """argparse, with its complaints on one line and without abbreviated options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    # Threads that wait by spinning take the processor from whoever they wait for as soon as anything else runs here,
    # threads that sleep at once are slow to wake (13%): they spin for microseconds. Read by OpenMP when torch is
    # loaded, which no import above does.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # Compiled products are kept, a thousand of them by default, which comes to gigabytes; a step needs a few hundred.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "400")
    try:
        parser = _build_parser()
        arguments, rest = parser.parse_known_args(argv)
        if rest and not arguments.takes_overrides:
            raise ValueError(f"openk2 {arguments.command}: saw unknown argument {rest[0]!r}; see --help")
        arguments.overrides = rest
        code = int(arguments.run(arguments) or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\n{stop}" if str(stop) else "\nstopped", file=sys.stderr)
        return 130


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="openk2", description="The Kimi K2 recipe, from text to a tool-using assistant.")
    parser.add_argument("--version", action="version", version=f"openk2 {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for register in (
        _add_speedrun,
        _add_pretrain,
        _add_synth,
        _add_sft,
        _add_rl,
        _add_evaluate,
        _add_chat,
        _add_params,
        _add_audit,
        _add_verify_resume,
        _add_show_sample,
    ):
        register(commands)
    return parser


def _command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    text: str,
    example: str,
    overrides: Any = None,
) -> argparse.ArgumentParser:
    """A sub-command; `overrides()` gives the config whose fields it can set, listed in its help."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  {example}" + ("\n\nsettings: openk2 " + name + " --list-settings" if overrides else ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, takes_overrides=overrides is not None)
    if overrides is not None:
        parser.add_argument("--list-settings", action=_ListSettings, settings=overrides, help="every --section.field")
    return parser


class _ListSettings(argparse.Action):
    """Prints the fields that can be set, with their types and values."""

    def __init__(self, option_strings: Sequence[str], dest: str, settings: Callable[[], Any], **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)
        self.settings = settings

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from openk2.config.overrides import option_table

        for option in option_table(self.settings()):
            print(f"--{option.path} {option.value}  ({option.type})  {option.help}".rstrip())
        parser.exit(0)


def _overridden(config: ConfigT, arguments: argparse.Namespace) -> ConfigT:
    from openk2.config.overrides import apply_overrides

    return apply_overrides(config, arguments.overrides)


def _console(arguments: argparse.Namespace, *, quiet: bool = False) -> Any:
    from openk2.observe.console import Console

    return Console(quiet=quiet or getattr(arguments, "quiet", False))


def _made_by() -> str:
    return "openk2 " + " ".join(sys.argv[1:])


# speedrun -----------------------------------------------------------------------------------------


def _add_speedrun(commands: Any) -> None:
    from openk2.recipes import RECIPES, speedrun

    parser = _command(
        commands, "speedrun", _speedrun, "the whole recipe, end to end, on this computer", "openk2 speedrun", speedrun
    )
    parser.add_argument("recipe", nargs="?", default="speedrun", choices=("speedrun", "smoke"), help="smoke: minutes")
    parser.add_argument("--out", type=Path, default=None, help="run folder (default out/RECIPE)")
    parser.set_defaults(recipes=RECIPES)


def _speedrun(arguments: argparse.Namespace) -> None:
    config = _overridden(arguments.recipes[arguments.recipe](), arguments)
    from openk2.speedrun import speedrun

    speedrun(config, arguments.out or Path("out") / arguments.recipe, _console(arguments))


# pretrain -----------------------------------------------------------------------------------------


def _add_pretrain(commands: Any) -> None:
    from openk2.recipes import tiny_pretrain

    example = "openk2 pretrain tiny --data my_texts --train.steps 200"
    parser = _command(commands, "pretrain", _pretrain, "train a base model on text", example, tiny_pretrain)
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
    config = _overridden(config, arguments)
    from openk2.chat.codec import Codec
    from openk2.checkpoint.variant import export_variant
    from openk2.parallel.world import join_world, leave_world
    from openk2.pretrain import pretrain
    from openk2.pretrain.report import write_page

    out = arguments.out or Path("out") / f"pretrain-{arguments.preset}"
    world = join_world(config.parallel.dp)
    console = _console(arguments, quiet=not world.first)
    model, tokenizer = pretrain(config, out, console, world)
    if world.first:
        console.line(f"report: {write_page(config, out, _made_by())}")
        console.result(f"{export_variant(model, Codec(tokenizer), out / 'base', kind='base', made_by=_made_by())}")
    leave_world()


# synth --------------------------------------------------------------------------------------------


def _add_synth(commands: Any) -> None:
    from openk2.config import SynthConfig

    example = "openk2 synth --out out/synth --attempts 6000"
    parser = _command(commands, "synth", _synth, "make tool-use trajectories and judge them", example, SynthConfig)
    parser.add_argument("--out", type=Path, default=Path("out/synth"), help="folder of trajectories.jsonl")


def _synth(arguments: argparse.Namespace) -> None:
    from openk2.config import SynthConfig
    from openk2.posttrain.synth import synthesise

    config = _overridden(SynthConfig(), arguments)
    console = _console(arguments)
    with console.progress("synthesising", unit="attempts") as bar:
        manifest = synthesise(config, arguments.out, lambda done, _total: bar.advance(done - bar.done))
    console.result(json.dumps(manifest, indent=2))
    console.line(f"wrote {arguments.out / 'trajectories.jsonl'}")


# sft and rl ---------------------------------------------------------------------------------------


def _add_sft(commands: Any) -> None:
    from openk2.recipes import speedrun

    example = "openk2 sft out/speedrun/base --data my_dialogues.jsonl --out out/mine"
    parser = _command(commands, "sft", _sft, "fine-tune a checkpoint on dialogues", example, lambda: speedrun().sft)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder in Hugging Face layout")
    parser.add_argument("--data", type=Path, required=True, help="chat JSONL in OpenAI's format, or trajectories.jsonl")
    parser.add_argument("--out", type=Path, default=Path("out/sft"), help="run folder; the model goes to OUT/model")


def _sft(arguments: argparse.Namespace) -> None:
    from openk2.recipes import speedrun

    config = _overridden(speedrun().sft, arguments)
    from openk2.data.dialogues import read_dialogues
    from openk2.posttrain.sft import sft

    dialogues = read_dialogues(arguments.data)
    model, codec = _load_chat(arguments.checkpoint, trained=True)
    sft(config, model, codec, dialogues, arguments.out, _console(arguments))
    _export_instruct(model, codec, arguments)


def _add_rl(commands: Any) -> None:
    from openk2.recipes import speedrun

    example = "openk2 rl out/speedrun/sft-model --data out/speedrun/synth/trajectories.jsonl --out out/rl"
    parser = _command(
        commands, "rl", _rl, "improve a checkpoint by reinforcement learning", example, lambda: speedrun().rl
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder that has been fine-tuned")
    parser.add_argument("--data", type=Path, required=True, help="trajectories.jsonl of openk2 synth")
    parser.add_argument("--out", type=Path, default=Path("out/rl"), help="run folder; the model goes to OUT/model")


def _rl(arguments: argparse.Namespace) -> None:
    from openk2.recipes import speedrun

    config = _overridden(speedrun().rl, arguments)
    from openk2.data.dialogues import read_dialogues
    from openk2.engine.engine import Engine
    from openk2.posttrain.rl import rl

    dialogues = read_dialogues(arguments.data)
    model, codec = _load_chat(arguments.checkpoint, trained=True)
    console = _console(arguments)
    trust = rl(config, model, codec, dialogues, arguments.out, console, make_sampler=Engine)
    console.line(f"self-critique: {trust.verdict()}")
    _export_instruct(model, codec, arguments)


def _load_chat(folder: Path, *, trained: bool) -> Any:
    """Model and codec; with fp32 weights where it is to be trained."""
    import torch

    from openk2.checkpoint.variant import load

    model, codec = load(folder, dtype=torch.float32 if trained else None)
    if codec is None:
        raise ValueError(f"{folder}: saw no tokenizer, expected tokenizer.json or tiktoken.model beside the weights")
    return model, codec


def _export_instruct(model: Any, codec: Any, arguments: argparse.Namespace) -> None:
    from openk2.checkpoint.variant import export_variant

    target = export_variant(model, codec, arguments.out / "model", kind="instruct", made_by=_made_by())
    _console(arguments).result(str(target))


# evaluate -----------------------------------------------------------------------------------------


def _add_evaluate(commands: Any) -> None:
    example = "openk2 evaluate out/speedrun/instruct --tasks phrasings,freehand"
    parser = _command(commands, "evaluate", _evaluate, "measure a checkpoint on held-out items", example)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder")
    parser.add_argument("--tasks", default="phrasings,freehand", help="names and .jsonl files, comma-separated")
    parser.add_argument("--data", type=Path, help="folder of data sets: gsm8k/, math/, mmlu/, validation/")
    parser.add_argument("--limit", type=int, help="items per task, a fixed subset")
    parser.add_argument("--variant", choices=("base", "instruct"), help="how to ask (default: what the folder is)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for evaluation.json and items.jsonl")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def _evaluate(arguments: argparse.Namespace) -> None:
    from openk2.engine.engine import Engine
    from openk2.evaluate import EvalSettings, evaluate, results_table

    if arguments.out is not None and arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"--out: saw the file {arguments.out}, expected a folder; choose another path")
    if arguments.seed < 0:
        raise ValueError(f"--seed: saw {arguments.seed}, expected 0 or more")
    model, codec = _load_chat(arguments.checkpoint, trained=False)
    engine = Engine(model)
    console = _console(arguments)
    variant = arguments.variant or _variant_of(arguments.checkpoint, codec)
    results = evaluate(
        [task.strip() for task in arguments.tasks.split(",")],
        engine,
        engine.score,
        codec,
        settings=EvalSettings(
            variant=variant,
            seed=arguments.seed,
            limit=arguments.limit,
            context_length=model.config.max_position_embeddings,
        ),
        data=arguments.data,
        out=arguments.out,
        about={"checkpoint": str(arguments.checkpoint)},
        progress=lambda p: console.line(
            f"{p.task} {p.done}/{p.total}" + (f", {p.eta_s:.0f} s to go" if p.eta_s else "")
        ),
    )
    if arguments.json:
        console.result(json.dumps({name: result.as_dict() for name, result in results.items()}, indent=2))
    else:
        from rich.console import Console as RichConsole

        RichConsole().print(results_table(results))


def _variant_of(folder: Path, codec: Any) -> str:
    """An instruct variant ends its turns with <|im_end|>."""
    path = folder / "generation_config.json"
    ends = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    return "instruct" if codec.tokenizer.im_end_id in (ends if isinstance(ends, list) else [ends]) else "base"


# chat ---------------------------------------------------------------------------------------------


def _add_chat(commands: Any) -> None:
    example = "openk2 chat out/speedrun/instruct --tools calculator,weekday"
    parser = _command(commands, "chat", _chat, "talk to a checkpoint in the terminal", example)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder")
    parser.add_argument("--tools", default="calculator,weekday", help="names, comma-separated, or none")
    parser.add_argument("--system", default="You are a helpful assistant.", help="the system message")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-new-tokens", type=int, default=128, help="per assistant message")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt", help="say this one thing and end")


def _chat(arguments: argparse.Namespace) -> None:
    from openk2.engine.engine import Engine
    from openk2.environments import TOOL_NAMES
    from openk2.protocols import SamplingParams
    from openk2.serve.terminal import Chat, converse, prompt_lines

    tools = [] if arguments.tools == "none" else [name.strip() for name in arguments.tools.split(",")]
    for name in tools:
        if name not in TOOL_NAMES:
            raise ValueError(f"--tools: saw {name!r}, expected names from {', '.join(TOOL_NAMES)}, or none")
    if arguments.temperature < 0 or arguments.max_new_tokens < 1:
        raise ValueError("chat: expected --temperature of 0 or more and --max-new-tokens of 1 or more")
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise ValueError("--prompt: saw nothing but blanks, expected something to answer")
    model, codec = _load_chat(arguments.checkpoint, trained=False)
    params = SamplingParams(
        max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature, seed=arguments.seed
    )
    chat = Chat(
        Engine(model),
        codec,
        system=arguments.system,
        tools=tools,
        params=params,
        context_length=model.config.max_position_embeddings,
        out=sys.stdout,
    )
    try:
        if arguments.prompt is not None:
            if not chat.say(arguments.prompt.strip()):
                raise ValueError(f"--prompt: saw a text too long for the {chat.context_length} tokens of the context")
        elif sys.stdin.isatty():
            print(f"tools: {', '.join(tools) or 'none'}; /reset begins anew, /quit ends")
            converse(chat, prompt_lines())
        else:
            converse(chat, sys.stdin)
    finally:
        chat.close()


# params, audit, samples, resume -------------------------------------------------------------------


def _add_params(commands: Any) -> None:
    parser = _command(
        commands, "params", _params, "count a model: parameters, FLOPs, cache", "openk2 params k2_1t --json"
    )
    parser.add_argument("preset", help="tiny, small, moonlight_16b_a3b or k2_1t")
    parser.add_argument("--context", type=int, default=4096, help="tokens at which attention's FLOPs are counted")
    parser.add_argument("--json", action="store_true")


def _params(arguments: argparse.Namespace) -> None:
    from openk2.commands.params import count, describe

    figures = count(arguments.preset, arguments.context)
    _console(arguments).result(json.dumps(figures, indent=2) if arguments.json else describe(figures))


def _add_audit(commands: Any) -> None:
    from openk2.recipes import tiny_pretrain

    parser = _command(
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
    parser.add_argument("--json", action="store_true")


def _audit(arguments: argparse.Namespace) -> int:
    from openk2.recipes import pretrain_recipe

    for option in arguments.overrides:
        if option.startswith("--") and not option.startswith(("--model.", "--optim.")):
            raise ValueError(f"audit-optimizer: saw {option}, expected settings of model and optim, which it looks at")
    if arguments.engine is None and arguments.processes is not None:
        raise ValueError("--processes: saw it without --engine, expected both, for it is of the sharded side")
    config = _overridden(pretrain_recipe(arguments.preset), arguments)
    console = _console(arguments)
    if arguments.engine is None:
        from openk2.commands.params import audit_table

        console.result(audit_table(config, as_json=arguments.json))
        return 0
    from openk2.commands.sharded_audit import compare, describe, small_enough

    processes = 2 if arguments.processes is None else arguments.processes
    found = compare(small_enough(config.model), config.optim, arguments.engine, processes=processes)
    console.result(json.dumps(found, indent=2) if arguments.json else describe(found))
    return 0 if found["passed"] else 1


def _add_show_sample(commands: Any) -> None:
    example = "openk2 show-sample out/speedrun/synth/trajectories.jsonl --tokenizer out/speedrun/base"
    parser = _command(commands, "show-sample", _show_sample, "print a dialogue with its loss mask coloured", example)
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


def _add_verify_resume(commands: Any) -> None:
    example = "openk2 verify-resume tiny"
    parser = _command(
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
    parser.add_argument("--json", action="store_true")


def _verify_resume(arguments: argparse.Namespace) -> int:
    from openk2.commands.verify_resume import verify

    stages = [name.strip() for name in arguments.stages.split(",")]
    return verify(arguments.preset, stages, arguments.steps, arguments.out, _console(arguments), as_json=arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
