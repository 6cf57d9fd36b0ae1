"""Commands that serve a checkpoint and put prompts to whatever is served."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from openk2.cli.command import (
    add_engine_options,
    command,
    load_chat,
    make_engine,
    open_console,
    print_table,
    variant_of,
)

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
    parser.add_argument("--step-tokens", type=int, default=2048, help="tokens read at most before the next one is sent")
    parser.add_argument("--beside-tokens", type=int, default=512, help=_BESIDE_HELP)
    parser.add_argument("--max-waiting", type=int, default=256, help="answers without a token before 429")
    parser.add_argument("--request-timeout", type=float, default=600.0, help="seconds an answer may take")
    parser.add_argument("--tool-timeout", type=float, default=30.0, help="seconds that a call of a tool may take")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds that running answers get after SIGTERM")
    parser.add_argument("--weights-folder", type=Path, metavar="FOLDER", help=_WEIGHTS_HELP)
    add_engine_options(parser)


_WEIGHTS_HELP = "let clients put new weights there and have them taken over: openk2 rl --endpoint (default: none)"
_BESIDE_HELP = "of prompts, while more answers wait for their next token than for their first"
_TOOLS_HELP = "built-in tools, comma-separated, or the command line of an MCP server; may be repeated"


def _serve(arguments: argparse.Namespace) -> None:
    from openk2.observe.memory import keep_freed_memory

    if (arguments.checkpoint is None) == (arguments.synthetic is None):
        raise ValueError("serve: saw a checkpoint and --synthetic, or neither, expected one of them")
    synthetic = arguments.synthetic is not None
    settings = _serve_settings(arguments)  # what is wrong with them is told before anything is loaded
    from openk2.serve.server import serve
    from openk2.serve.synthetic import synthetic_model

    keep_freed_memory()
    engine, codec = make_engine(
        lambda: synthetic_model(arguments.synthetic) if synthetic else load_chat(arguments.checkpoint, trained=False),
        arguments,
        compiled=True,
        native="background",
        step_tokens=arguments.step_tokens,
        beside_tokens=arguments.beside_tokens,
    )
    variant = arguments.variant or ("instruct" if synthetic else variant_of(arguments.checkpoint, codec))
    serve(engine, codec, dataclasses.replace(settings, chat=variant == "instruct"))


def _serve_settings(arguments: argparse.Namespace) -> Any:
    from openk2.serve.settings import ServeSettings

    given = f"synthetic-{arguments.synthetic}" if arguments.checkpoint is None else arguments.checkpoint.resolve().name
    return ServeSettings(
        model_name=arguments.name or given,
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
        weights_folder=arguments.weights_folder,
    )


def _tools(given: Sequence[str]) -> tuple[str, ...]:
    """Names that stand together are taken apart; a command line has blanks or a path, and stays whole."""
    found: list[str] = []
    for entry in given:
        names = [name.strip() for name in entry.split(",") if name.strip()]
        found += [entry] if any(char in name for name in names for char in " /") else names
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
    parser.add_argument("--seed", type=int, default=0, help="sent with each request, the sample's number added")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time to each target")
    parser.add_argument("--per-minute", type=int, help="requests a minute to each target at most")
    parser.add_argument("--price", action="append", default=[], metavar="NAME=IN,OUT", help="of a million tokens")
    parser.add_argument(
        "--extra", action="append", default=[], metavar="NAME={...}", help="JSON that requests get added"
    )
    parser.add_argument("--compare", type=Path, metavar="FOLDER", help="an earlier run: what changed since")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


_TARGET_HELP = "URL[,model=NAME][,key=VARIABLE][,name=TEXT], or a checkpoint folder, which is served for the time"


def _testrun(arguments: argparse.Namespace) -> int:
    from openk2.evaluate.testrun import (
        RunSettings,
        Target,
        load_prompts,
        parse_extra,
        parse_price,
        run_prompts,
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
    if arguments.compare is not None and not (arguments.compare / "run.json").is_file():
        raise ValueError(f"--compare: saw no run.json in {arguments.compare}, expected the folder of an earlier run")
    console = open_console(arguments)
    with contextlib.ExitStack() as served:
        targets = [
            Target.parse(text) if "://" in text else served.enter_context(_served(Path(text)))
            for text in arguments.targets
        ]
        report = run_prompts(
            arguments.prompts, with_options(targets, prices, extras), arguments.out, settings=settings, console=console
        )
    return _tell(report, arguments, console)


def _tell(report: Any, arguments: argparse.Namespace, console: Any) -> int:
    """The run's figures, and what changed since an earlier one; 1 where a target gave no answer."""
    from openk2.evaluate.testrun import diff_runs, summary_table

    for warning in report.warnings:
        console.line(warning)
    difference = diff_runs(arguments.compare, arguments.out, out=arguments.out) if arguments.compare else None
    silent = [row["target"] for row in report.figures["summary"] if not row["answered"]]
    if silent:
        console.line(f"{', '.join(silent)}: saw no answer to any prompt, expected some; the warnings above say why")
    code = 1 if silent else 0
    if arguments.json:
        figures = dict(report.figures) | ({"diff": difference.as_dict()} if difference else {})
        console.result(json.dumps(figures, indent=2))
        return code
    print_table(summary_table(dict(report.figures)))
    if difference is not None:
        console.result(difference.text())
    console.result(str(report.page))
    return code


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
