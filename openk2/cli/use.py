"""Commands that use a checkpoint."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from openk2.cli.command import command, load_chat, open_console

# evaluate -----------------------------------------------------------------------------------------


def add_evaluate(commands: Any) -> None:
    example = "openk2 evaluate out/speedrun/instruct --tasks phrasings,freehand"
    parser = command(commands, "evaluate", _evaluate, "measure a checkpoint on held-out items", example)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder")
    parser.add_argument("--tasks", default="phrasings,freehand", help="names and .jsonl files, comma-separated")
    parser.add_argument("--data", type=Path, help="folder of data sets: gsm8k/, math/, mmlu/, validation/")
    parser.add_argument("--limit", type=int, help="items per task, a fixed subset")
    parser.add_argument("--variant", choices=("base", "instruct"), help="how to ask (default: what the folder is)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for evaluation.json and items.jsonl")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--endpoint", metavar="URL", help=_ENDPOINT_HELP)
    _add_engine_options(parser)


_ENDPOINT_HELP = "ask this server, which has the checkpoint's vocabulary and takes token ids; the weights stay unread"


def _evaluate(arguments: argparse.Namespace) -> None:
    from openk2.evaluate import EvalSettings, evaluate, results_table

    if arguments.out is not None and arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"--out: saw the file {arguments.out}, expected a folder; choose another path")
    if arguments.seed < 0:
        raise ValueError(f"--seed: saw {arguments.seed}, expected 0 or more")
    generate, score, codec, context_length = _generator(arguments)
    console = open_console(arguments)
    variant = arguments.variant or _variant_of(arguments.checkpoint, codec)
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
        from rich.console import Console as RichConsole

        RichConsole().print(results_table(results))


def _generator(arguments: argparse.Namespace) -> tuple[Any, Any, Any, int]:
    """What samples, what scores, the codec, and the tokens of the context: the checkpoint's engine here, or an
    endpoint."""
    if arguments.endpoint is None:
        from openk2.engine import Engine

        model, codec = load_chat(arguments.checkpoint, trained=False)
        engine = Engine(model, _engine_settings(arguments))
        return engine, engine.score, codec, model.config.max_position_embeddings
    from openk2.chat.codec import Codec
    from openk2.checkpoint.hf_config import read_config
    from openk2.engine.remote import RemoteGenerate

    def score(_: Any) -> Any:
        raise ValueError("--endpoint: saw a task that scores given text, expected only tasks that sample; leave it out")

    remote = RemoteGenerate(arguments.endpoint, key_env="OPENAI_API_KEY" if "OPENAI_API_KEY" in os.environ else "")
    context = remote.context_length or read_config(arguments.checkpoint).max_position_embeddings
    return remote, score, Codec.load(arguments.checkpoint), context


def _variant_of(folder: Path, codec: Any) -> str:
    """An instruct variant ends its turns with <|im_end|>."""
    path = folder / "generation_config.json"
    ends = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    return "instruct" if codec.tokenizer.im_end_id in (ends if isinstance(ends, list) else [ends]) else "base"


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache-tokens", type=int, help="tokens the latent cache holds (default: at most 1 GiB)")
    parser.add_argument("--max-running", type=int, default=256, help="sequences that share a step")
    parser.add_argument("--eight-bit-cache", action="store_true", help="latents in 8 bits: half the cache's memory")
    parser.add_argument("--deterministic", action="store_true", help="the same bits in any company, slower")


def _engine_settings(arguments: argparse.Namespace, **changes: Any) -> Any:
    from openk2.engine import EngineSettings

    return EngineSettings(
        cache_tokens=arguments.cache_tokens,
        max_running=arguments.max_running,
        eight_bit_cache=arguments.eight_bit_cache,
        attention="invariant" if arguments.deterministic else "auto",
        **changes,
    )


# chat ---------------------------------------------------------------------------------------------


def add_chat(commands: Any) -> None:
    example = "openk2 chat out/speedrun/instruct --tools calculator,weekday"
    parser = command(commands, "chat", _chat, "talk to a checkpoint in the terminal", example)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder")
    parser.add_argument("--tools", default="calculator,weekday", help="names, comma-separated, or none")
    parser.add_argument("--system", default="You are a helpful assistant.", help="the system message")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-new-tokens", type=int, default=128, help="per assistant message")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt", help="say this one thing and end")
    parser.add_argument("--endpoint", metavar="URL", help=_ENDPOINT_HELP + "; calls are not constrained there")
    _add_engine_options(parser)


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
    generate, _, codec, context_length = _generator(arguments)
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


# serve --------------------------------------------------------------------------------------------


def add_serve(commands: Any) -> None:
    example = "openk2 serve out/speedrun/instruct --tools calculator,weekday"
    parser = command(commands, "serve", _serve, "serve a checkpoint over HTTP, with a chat page", example)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="a checkpoint folder")
    parser.add_argument(
        "--synthetic", metavar="PRESET", help="instead: random weights of this shape, for whoever builds a client"
    )
    parser.add_argument("--name", help="the model's name for clients (default: the folder's)")
    parser.add_argument("--variant", choices=("base", "instruct"), help="base: no chat (default: what the folder is)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--tools", action="append", default=[], metavar="NAMES|COMMAND", help=_TOOLS_HELP)
    parser.add_argument("--temperature", type=float, default=0.6, help="where a request says none")
    parser.add_argument("--api-key-env", default="", metavar="NAME", help="environment variable that holds the key")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a further Host to answer to")
    parser.add_argument("--allow-origin", action="append", default=[], metavar="ORIGIN", help="allow its pages (CORS)")
    parser.add_argument("--step-tokens", type=int, default=512, help=_STEP_HELP)
    parser.add_argument("--max-waiting", type=int, default=256, help="answers without a token before 429")
    parser.add_argument("--request-timeout", type=float, default=600.0, help="seconds an answer may take")
    parser.add_argument("--tool-timeout", type=float, default=30.0, help="seconds that a call of a tool may take")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds that running answers get after SIGTERM")
    _add_engine_options(parser)


_STEP_HELP = "tokens read in one step: long prompts come in pieces of it, between which others get their next token"
_TOOLS_HELP = "built-in tools, comma-separated, or the command line of an MCP server; may be repeated"


def _serve(arguments: argparse.Namespace) -> None:
    from openk2.serve.settings import ServeSettings

    if (arguments.checkpoint is None) == (arguments.synthetic is None):
        raise ValueError("serve: saw a checkpoint and --synthetic, or neither, expected one of them")
    synthetic = arguments.synthetic is not None
    name = arguments.name or (f"synthetic-{arguments.synthetic}" if synthetic else arguments.checkpoint.resolve().name)
    settings = ServeSettings(
        model_name=name,
        host=arguments.host,
        port=arguments.port,
        temperature=arguments.temperature,
        max_waiting=arguments.max_waiting,
        request_timeout=arguments.request_timeout,
        allow_hosts=tuple(arguments.allow_host),
        allow_origins=tuple(arguments.allow_origin),
        api_key_env=arguments.api_key_env,
        tools=_tools(arguments.tools),
        tool_timeout=arguments.tool_timeout,
        grace=arguments.grace,
    )
    engine_settings = _engine_settings(arguments, native="background", step_tokens=arguments.step_tokens)
    from openk2.engine import Engine
    from openk2.serve.server import serve
    from openk2.serve.synthetic import synthetic_model

    if synthetic:
        model, codec = synthetic_model(arguments.synthetic)
        variant = arguments.variant or "instruct"
    else:
        model, codec = load_chat(arguments.checkpoint, trained=False)
        variant = arguments.variant or _variant_of(arguments.checkpoint, codec)
    serve(Engine(model, engine_settings), codec, dataclasses.replace(settings, chat=variant == "instruct"))


def _tools(given: Sequence[str]) -> tuple[str, ...]:
    """Names that stand together are taken apart; a command line has blanks or a path, and stays whole."""
    found: list[str] = []
    for entry in given:
        whole = any(char in entry.strip() for char in " /")
        found += [entry] if whole else [name.strip() for name in entry.split(",") if name.strip()]
    return tuple(found)


# testrun ------------------------------------------------------------------------------------------


def add_testrun(commands: Any) -> None:
    example = "openk2 testrun starter out/speedrun/instruct http://127.0.0.1:8000/v1 --out out/testrun"
    parser = command(commands, "testrun", _testrun, "put a folder of prompts to models, answers side by side", example)
    parser.add_argument("prompts", help="a folder or file of prompts, or starter")
    parser.add_argument("targets", nargs="+", metavar="TARGET", help=_TARGET_HELP)
    parser.add_argument(
        "--out", type=Path, default=Path("out/testrun"), help="run folder; a second run asks what lacks"
    )
    parser.add_argument("--samples", type=int, default=1, help="answers of each prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time to each target")
    parser.add_argument("--per-minute", type=int, help="requests a minute to each target at most")
    parser.add_argument("--price", action="append", default=[], metavar="NAME=IN,OUT", help="of a million tokens")
    parser.add_argument(
        "--extra", action="append", default=[], metavar="NAME={...}", help="JSON that requests get added"
    )
    parser.add_argument("--compare", type=Path, metavar="FOLDER", help="an earlier run: what changed since")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


_TARGET_HELP = "URL[,model=NAME][,key=VARIABLE][,name=TEXT], or a checkpoint folder, which is served for the time"


def _testrun(arguments: argparse.Namespace) -> None:
    from openk2.evaluate.testrun import (
        RunSettings,
        Target,
        diff_runs,
        load_prompts,
        parse_extra,
        parse_price,
        run_prompts,
        summary_table,
        with_options,
    )

    settings = RunSettings(
        samples=arguments.samples,
        seed=arguments.seed,
        concurrency=arguments.concurrency,
        per_minute=arguments.per_minute,
    )
    prices = dict(map(parse_price, arguments.price))
    extras = dict(map(parse_extra, arguments.extra))
    load_prompts(arguments.prompts)  # what is wrong with them is told before anything is served
    console = open_console(arguments)
    with contextlib.ExitStack() as served:
        targets = [
            Target.parse(text) if "://" in text else served.enter_context(_served(Path(text)))
            for text in arguments.targets
        ]
        report = run_prompts(
            arguments.prompts, with_options(targets, prices, extras), arguments.out, settings=settings, console=console
        )
    for warning in report.warnings:
        console.line(warning)
    difference = diff_runs(arguments.compare, arguments.out, out=arguments.out) if arguments.compare else None
    if arguments.json:
        figures = dict(report.figures) | ({"diff": difference.as_dict()} if difference else {})
        console.result(json.dumps(figures, indent=2))
        return
    from rich.console import Console as RichConsole

    RichConsole().print(summary_table(dict(report.figures)))
    if difference is not None:
        console.result(difference.text())
    console.result(str(report.page))


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[Any]:
    """A target that is a checkpoint: this command again, as a server on any free port, until the end."""
    from openk2.evaluate.testrun import Target

    if not folder.is_dir():
        raise ValueError(f"testrun: saw the target {str(folder)!r}, expected a URL or a checkpoint folder")
    command = [sys.executable, "-m", "openk2", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            said = []
            assert server.stderr is not None
            for line in server.stderr:
                said.append(line.strip())
                if " on http" in line:
                    break
            else:
                raise ValueError(f"testrun: {folder} could not be served: {(said or ['no word'])[-1]}")
            url = said[-1].rpartition(" on ")[2]
            threading.Thread(target=server.stderr.read, daemon=True).start()  # so that it never waits for a reader
            yield Target(url, folder.resolve().name, identity=str(folder.resolve()))
        finally:
            server.terminate()
