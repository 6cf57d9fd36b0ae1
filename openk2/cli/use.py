"""Commands that measure a checkpoint and talk to it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from openk2.cli.command import (
    add_engine_options,
    add_key_option,
    command,
    load_chat,
    make_engine,
    open_console,
    print_table,
    variant_of,
)

# evaluate -----------------------------------------------------------------------------------------


def add_evaluate(commands: Any) -> None:
    example = "openk2 evaluate out/speedrun/instruct --tasks phrasings,freehand"
    parser = command(commands, "evaluate", _evaluate, "measure a checkpoint on held-out items", example)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder")
    parser.add_argument("--tasks", default="phrasings,freehand", help="names and .jsonl files, comma-separated")
    parser.add_argument("--data", type=Path, help="folder of data sets: gsm8k/, math/, mmlu/, validation/")
    parser.add_argument("--limit", type=int, help="items per task, a fixed subset")
    parser.add_argument("--variant", choices=("base", "instruct"), help="how to ask (default: what the folder is)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--out", type=Path, help="folder for evaluation.json and items.jsonl")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--endpoint", metavar="URL", help=_ENDPOINT_HELP)
    add_key_option(parser)
    add_engine_options(parser)


_ENDPOINT_HELP = "ask this server, which has the checkpoint's vocabulary and takes token ids; the weights stay unread"


def _evaluate(arguments: argparse.Namespace) -> None:
    from openk2.evaluate import EvalSettings, evaluate, results_table

    if arguments.out is not None and arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"--out: saw the file {arguments.out}, expected a folder; choose another path")
    if arguments.seed < 0:
        raise ValueError(f"--seed: saw {arguments.seed}, expected 0 or more")
    generate, score, codec, context_length = _generator(arguments, compiled=True)
    console = open_console(arguments)
    variant = arguments.variant or variant_of(arguments.checkpoint, codec)
    results = evaluate(
        [task.strip() for task in arguments.tasks.split(",")],
        generate,
        score,
        codec,
        settings=EvalSettings(
            variant=variant,
            seed=arguments.seed,
            limit=arguments.limit,
            context_length=context_length,
        ),
        data=arguments.data,
        out=arguments.out,
        about={"checkpoint": str(arguments.checkpoint)}
        | ({"endpoint": arguments.endpoint} if arguments.endpoint else {}),
        progress=lambda p: console.line(
            f"{p.task} {p.done}/{p.total}" + (f", {p.eta_s:.0f} s to go" if p.eta_s else "")
        ),
    )
    if arguments.json:
        console.result(json.dumps({name: result.as_dict() for name, result in results.items()}, indent=2))
    else:
        print_table(results_table(results))


def _generator(arguments: argparse.Namespace, *, compiled: bool) -> tuple[Any, Any, Any, int]:
    """What samples, what scores, the codec, and the tokens of the context: the checkpoint's engine here, or an
    endpoint."""
    if arguments.endpoint is None:
        engine, codec = make_engine(
            lambda: load_chat(arguments.checkpoint, trained=False), arguments, compiled=compiled
        )
        return engine, engine.score, codec, engine.model.config.max_position_embeddings
    from openk2.chat.codec import Codec
    from openk2.checkpoint.hf_config import read_config
    from openk2.engine.remote import RemoteGenerate

    def score(_: Any) -> Any:
        raise ValueError("--endpoint: saw a task that scores given text, expected only tasks that sample; leave it out")

    remote = RemoteGenerate(arguments.endpoint, key_env=arguments.key_env)
    context = remote.context_length or read_config(arguments.checkpoint).max_position_embeddings
    return remote, score, Codec.load(arguments.checkpoint), context


# chat ---------------------------------------------------------------------------------------------


def add_chat(commands: Any) -> None:
    example = "openk2 chat out/speedrun/instruct --tools calculator,weekday"
    parser = command(commands, "chat", _chat, "talk to a checkpoint in the terminal", example)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder")
    parser.add_argument("--tools", default="calculator,weekday", help="names, comma-separated, or none")
    parser.add_argument("--system", default="You are a helpful assistant.", help="the system message")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token each time")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="per assistant message")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--prompt", help="say this one thing and end")
    parser.add_argument("--endpoint", metavar="URL", help=_ENDPOINT_HELP + "; calls are not constrained there")
    add_key_option(parser)
    add_engine_options(parser)


def _chat(arguments: argparse.Namespace) -> None:
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
    generate, _, codec, context_length = _generator(arguments, compiled=False)
    params = SamplingParams(
        max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature, seed=arguments.seed
    )
    chat = Chat(
        generate,
        codec,
        system=arguments.system,
        tools=tools,
        params=params,
        context_length=context_length,
        out=sys.stdout,
        constrained=arguments.endpoint is None,
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
