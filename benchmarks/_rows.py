"""What the benchmarks share: two sides timed in turn, rows of one shape, and going on where a killed run stood."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from openk2.observe.files import write_atomic
from openk2.observe.memory import keep_freed_memory
from openk2.observe.run_folder import git_commit
from openk2.ops.fused import fusion_available, set_fusion

Result = TypeVar("Result")
FEW = 5


def fuse() -> None:
    """Compile kernels where that works, as a training run does."""
    set_fusion(fusion_available()[0])


def seconds(run: Callable[[], Any]) -> float:
    """How long one call takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def in_turn(sides: Mapping[str, Callable[[], Any]], rounds: int, *, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each side over `rounds`, one call of each in every round, every other round in reverse order; the
    first `warm` rounds do not count."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    begin = time.perf_counter()
    for number in range(warm + rounds):
        for name in reversed(list(sides)) if number % 2 else sides:
            spent = seconds(sides[name])
            if number >= warm:
                taken[name].append(spent)
        if sys.stderr.isatty():
            left = (warm + rounds - number - 1) * (time.perf_counter() - begin) / (number + 1)
            end = "" if number + 1 < warm + rounds else "\n"
            print(
                f"\r  round {number + 1} of {warm + rounds}, {left:.0f} s to go ", end=end, file=sys.stderr, flush=True
            )
    return taken


def in_own_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """What `function` returns in a fresh process, whose memory is its own; kernels are compiled there, too."""
    with multiprocessing.get_context("spawn").Pool(1, initializer=fuse) as pool:
        return pool.apply(function, arguments)


class Apart:
    """One side in a process of its own, as its user would run it: caches of compiled products and freed memory are not
    shared with the other side. `make(*arguments)` makes, over there, what `run` calls the methods of."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def run(self, method: str) -> None:
        """Raises RuntimeError with what went wrong over there."""
        self._pipe.send(method)
        self._answer()

    def close(self) -> None:
        self._process.kill()
        self._process.join()

    def _answer(self) -> None:
        try:
            error = self._pipe.recv()
        except EOFError:
            error = "the process has ended"
        if error:
            raise RuntimeError(error)


def _serve(pipe: Connection, make: Callable[..., Any], *arguments: Any) -> None:
    keep_freed_memory()
    fuse()
    side: Any = None
    method = ""
    while True:
        try:
            if method:
                getattr(side, method)()
            else:
                side = make(*arguments)
            pipe.send("")
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {str(error)[:80]}")
        method = pipe.recv()


class Rows:
    """The rows of one benchmark, written as they are found; those of the same commit and device are not made again,
    those of others stay in the file."""

    def __init__(self, description: str, **paths: str) -> None:
        """`paths`: further options that name a file, each with its help; they are found in `paths`."""
        keep_freed_memory()  # as a training run does; both sides have it
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--quick", action="store_true", help="fewer rounds and the small sizes only")
        parser.add_argument("--json", type=Path, help="write the rows to this file, and go on from those in it")
        parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name holds this text")
        for name, text in paths.items():
            parser.add_argument(f"--{name}", type=Path, help=text)
        arguments = parser.parse_args()
        fuse()
        self.quick: bool = arguments.quick
        self.only: str = arguments.only
        self.path: Path | None = arguments.json
        self.paths: dict[str, Path | None] = {name: getattr(arguments, name) for name in paths}
        threads = torch.get_num_threads()
        self.stamp = {
            "device": f"{platform.processor() or platform.machine()}, {threads} threads",
            "commit": git_commit(),
            "quick": self.quick,
        }
        found = _read(self.path, parser) if self.path else []
        self.rows = [row for row in found if {key: row.get(key) for key in self.stamp} == self.stamp]
        self.others = [row for row in found if row not in self.rows]  # of other commits: kept, and measured anew

    def missing(self, name: str) -> bool:
        """Whether this row is wanted and still to be made; says so if it has been made."""
        if self.only not in name:
            return False
        done = any(row["name"] == name for row in self.rows)
        if done:
            print(f"{name}: already in {self.path}")
        return not done

    def find(self, name: str) -> dict[str, Any]:
        """The row of that name; where --only left it out, the program ends."""
        found = next((row for row in self.rows if row["name"] == name), None)
        if found is None:
            print(f"error: --only {self.only}: left out {name}, which other rows need; ask for all", file=sys.stderr)
            sys.exit(2)
        return found

    def times(self, name: str, taken: dict[str, list[float]], peer_name: str, *, unit: str, amount: float) -> None:
        """A row of rates (`amount` a call) or, where `unit` is "ms", of times multiplied by `amount`.

        `taken` holds the seconds of "ours" and "peer", round by round; the ratio is ours over theirs, larger is better.
        Its 95% interval is a bootstrap over rounds; with fewer than `FEW` rounds it would say nothing and is None.
        """
        ratios = [peer / ours for ours, peer in zip(taken["ours"], taken["peer"], strict=True)]
        medians = {side: statistics.median(values) for side, values in taken.items()}
        shown = {side: amount * value if unit == "ms" else amount / value for side, value in medians.items()}
        self.add(
            name,
            unit=unit,
            ours=shown["ours"],
            peer=shown["peer"],
            peer_name=peer_name,
            ratio=medians["peer"] / medians["ours"],
            interval=_interval(taken) if len(ratios) >= FEW else None,
            n=len(ratios),
            spread=[min(ratios), max(ratios)],
        )

    def add(self, name: str, **figures: Any) -> None:
        """One more row, printed and written at once."""
        row = {"name": name, **{key: _short(value) for key, value in figures.items()}, **self.stamp}
        self.rows.append(row)
        print(json.dumps(row))
        if self.path:
            write_atomic(self.path, json.dumps(self.others + self.rows, indent=2) + "\n")


def _read(path: Path, parser: argparse.ArgumentParser) -> list[dict[str, Any]]:
    """The rows of a file, none where there is no file yet; where it cannot be one, the program ends."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        if not isinstance(found, list) or not all(isinstance(row, dict) and "name" in row for row in found):
            raise ValueError
        write_atomic(path, json.dumps(found, indent=2) + "\n")  # what cannot be written is told before it is measured
    except ValueError:
        parser.exit(2, f"error: --json: {path}: saw something else than a benchmark's rows; choose another file\n")
    except OSError as error:
        parser.exit(2, f"error: --json: {path}: {error.strerror or error}; choose another file\n")
    return found


def _interval(taken: Mapping[str, Sequence[float]], draws: int = 10_000) -> list[float]:
    """Of the ratio of medians, the rounds drawn again; both sides of a round stay together."""
    ours, peer = (np.array(taken[side]) for side in ("ours", "peer"))
    drawn = np.random.default_rng(0).integers(len(ours), size=(draws, len(ours)))
    ratios = np.median(peer[drawn], axis=1) / np.median(ours[drawn], axis=1)
    return [float(end) for end in np.quantile(ratios, (0.025, 0.975))]


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
