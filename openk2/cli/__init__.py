"""The `openk2` command: one sub-command a stage, each a few lines that join configs, stages and engine.

Bad input ends with one line on stderr and exit code 2, Ctrl-C with 130.
Options with a dot set a field of the config (`--train.steps 200`); anything
unknown or without effect is refused.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from openk2.cli import checks, serving, stages, use
from openk2.cli.command import Parser
from openk2.version import __version__


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
    parser = Parser(prog="openk2", description="The Kimi K2 recipe, from text to a tool-using assistant.")
    parser.add_argument("--version", action="version", version=f"openk2 {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for register in (
        stages.add_speedrun,
        stages.add_pretrain,
        stages.add_synth,
        stages.add_sft,
        stages.add_rl,
        use.add_evaluate,
        use.add_chat,
        serving.add_serve,
        serving.add_testrun,
        checks.add_params,
        checks.add_audit,
        checks.add_verify_resume,
        checks.add_show_sample,
        checks.add_compare_modes,
    ):
        register(commands)
    return parser
