"""What commands are made of: a parser, settings by dotted options, a console, a loaded checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

ConfigT = TypeVar("ConfigT")
FULL_WIDTH = 200  # columns of a table that no terminal shows


class Parser(argparse.ArgumentParser):
    """argparse, with its complaints on one line and without abbreviated options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}; see {self.prog} --help")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Tells the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        said, default = action.help or "", action.default
        has_one = isinstance(default, (int, float, str, Path)) and not isinstance(default, bool)
        if not has_one or default in ("", argparse.SUPPRESS) or "default" in said:
            return said
        return f"{said} (default: %(default)s)"


def command(
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
        formatter_class=_Help,
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


def overridden(config: ConfigT, arguments: argparse.Namespace) -> ConfigT:
    from openk2.config.overrides import apply_overrides

    return apply_overrides(config, arguments.overrides)


def open_console(arguments: argparse.Namespace, *, quiet: bool = False) -> Any:
    from openk2.observe.console import Console

    return Console(quiet=quiet or getattr(arguments, "quiet", False))


def print_table(table: Any) -> None:
    """On stdout, as wide as a terminal is; in full where it goes to a file or a program."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else FULL_WIDTH).print(table)


def made_by() -> str:
    return "openk2 " + " ".join(sys.argv[1:])


def load_chat(folder: Path, *, trained: bool) -> Any:
    """Model and codec; with fp32 weights where it is to be trained."""
    import torch

    from openk2.checkpoint.variant import load

    model, codec = load(folder, dtype=torch.float32 if trained else None)
    if codec is None:
        raise ValueError(f"{folder}: saw no tokenizer, expected tokenizer.json or tiktoken.model beside the weights")
    return model, codec


def variant_of(folder: Path, codec: Any) -> str:
    """An instruct variant ends its turns with <|im_end|>."""
    from openk2.checkpoint.hf_config import read_json

    path = folder / "generation_config.json"
    ends = read_json(path).get("eos_token_id") if path.is_file() else None
    return "instruct" if codec.tokenizer.im_end_id in (ends if isinstance(ends, list) else [ends]) else "base"


def add_key_option(parser: argparse.ArgumentParser) -> None:
    text = "environment variable that holds the endpoint's key (default: none is sent)"
    parser.add_argument("--key-env", default="", metavar="NAME", help=text)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache-tokens", type=int, help="tokens the latent cache holds (default: at most 1 GiB)")
    parser.add_argument("--max-running", type=int, default=256, help="sequences that share a step")
    parser.add_argument("--eight-bit-cache", action="store_true", help="latents in 8 bits: half the cache's memory")
    parser.add_argument("--deterministic", action="store_true", help="the same bits in any company, slower")


def make_engine(
    load: Callable[[], tuple[Any, Any]], arguments: argparse.Namespace, *, compiled: bool, **changes: Any
) -> tuple[Any, Any]:
    """The engine for the model that `load` returns beside its codec. Kernels are compiled while it runs, which pays
    where much is read, and which the end of the process waits for."""
    import threading
    from concurrent.futures import ThreadPoolExecutor

    from openk2.engine import Engine

    def make() -> tuple[Any, Any]:
        model, codec = load()
        return Engine(model, _engine_settings(arguments, **changes)), codec

    # A thread that ran a parallel loop keeps a team of OpenMP threads until it ends, and where there are more of them
    # than processors none of them spins at a barrier any more: 50 barriers a step of a small model, each a sleep.
    with ThreadPoolExecutor(1) as thread:
        engine, codec = thread.submit(make).result()
    if compiled:
        threading.Thread(target=_compile, args=(engine,), name="compile kernels").start()
    return engine, codec


def _compile(engine: Any) -> None:
    from openk2.ops.cpp import shared_object

    said = ""
    if engine.native is not None:
        shared_object().get(wait=True)
        said = shared_object().problem
    try:
        engine.compile_kernels()
    except Exception as error:  # whatever a toolchain can get wrong, prompts are read as before
        said = said or f"kernels were not compiled ({type(error).__name__}: {error!s:.200})"
    if said:
        print(f"warning: {said}", file=sys.stderr, flush=True)


def _engine_settings(arguments: argparse.Namespace, **changes: Any) -> Any:
    from openk2.engine import EngineSettings

    return EngineSettings(
        cache_tokens=arguments.cache_tokens,
        max_running=arguments.max_running,
        eight_bit_cache=arguments.eight_bit_cache,
        attention="invariant" if arguments.deterministic else "auto",
        **changes,
    )
