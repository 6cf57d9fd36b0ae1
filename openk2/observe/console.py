"""What a person sees while a run works: step lines, sections, progress with a time to go.

Invariants: everything but results goes to stderr, so that a result can be piped;
a terminal gets a live bar, anything else plain lines a few seconds apart; quiet
mode silences all but warnings and results. Text is printed as it is: no markup
is read from it, and control characters in it are shown, not obeyed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TextIO

from openk2.observe.metrics import StepRecord

PLAIN_INTERVAL_S = 5.0


def duration(seconds: float) -> str:
    """45s, 4m05s, 2h10m: short enough for a step line."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def quantity(value: float) -> str:
    """A count or rate in three or so figures: 950, 8.1k, 2.4M."""
    for limit, divisor, suffix in ((1e3, 1.0, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M"), (1e12, 1e9, "G")):
        if abs(value) < limit:
            scaled = value / divisor
            return f"{scaled:.0f}{suffix}" if suffix == "" or abs(scaled) >= 100 else f"{scaled:.1f}{suffix}"
    return f"{value:.2e}"


def byte_size(count: float) -> str:
    """Bytes in powers of 1024: 950 B, 3.1 MiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def step_line(record: StepRecord, total_steps: int) -> str:
    """One dense line; what a stage does not measure is left out.

    "peak" is the share of the measured matmul peak, "rms" the mean update RMS
    of each optimizer's groups, "load" the busiest expert's load over the mean.
    """
    width = len(str(total_steps))
    parts = [f"{record.stage} {record.step:>{width}}/{total_steps}", f"loss {record.loss:.4f}"]
    add = parts.append
    if record.bits_per_byte is not None:
        add(f"bpb {record.bits_per_byte:.3f}")
    if record.balance_loss is not None:
        add(f"bal {record.balance_loss:.2e}")
    parts += [f"{name} {value:.3g}" for name, value in record.extra.items() if value is not None]
    add(f"{quantity(record.tokens_per_s)} tok/s")
    if record.matmul_share is not None:
        add(f"peak {record.matmul_share:.0%}")
    if record.grad_norm is not None:
        add(f"gnorm {record.grad_norm:.3g}")
    if record.lr is not None:
        add(f"lr {record.lr:.2e}")
    if record.update_rms:
        add("rms " + " ".join(f"{name} {value:.3g}" for name, value in _by_optimizer(record.update_rms).items()))
    if record.max_logit is not None:
        add(f"logit {record.max_logit:.1f}")
    if record.clipped_heads is not None:
        add(f"clipped {record.clipped_heads}")
    if record.load_ratio is not None:
        dead = f" dead {record.dead_experts}" if record.dead_experts else ""
        add(f"load {record.load_ratio:.2f}x{dead}")
    if record.eta_s is not None:
        add(f"eta {duration(record.eta_s)}")
    return "  ".join(parts)


def _by_optimizer(update_rms: Mapping[str, float | None]) -> dict[str, float]:
    families: dict[str, list[float]] = {}
    for name, value in update_rms.items():
        if value is not None:
            families.setdefault(name.partition(".")[0], []).append(value)
    return {name: sum(values) / len(values) for name, values in families.items()}


def printable(text: str) -> str:
    """`text` with control characters shown as escapes, so that it cannot drive the terminal."""
    kept = ("\n", "\t")
    return "".join(c if c in kept or not _is_control(c) else c.encode("unicode_escape").decode() for c in text)


# C0; DEL and C1; overrides of the writing direction, twice; lone surrogates, which no terminal encodes
_CONTROL_RANGES = ((0, 31), (127, 159), (0x202A, 0x202E), (0x2066, 0x2069), (0xD800, 0xDFFF))


def _is_control(character: str) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in _CONTROL_RANGES)


class Console:
    """The voice of a run. `stream` is stderr and `results` stdout unless given."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None, results: TextIO | None = None) -> None:
        self.quiet = quiet
        self._stream = stream
        self._results = results

    @property
    def stream(self) -> TextIO:
        return self._stream or sys.stderr

    @property
    def is_terminal(self) -> bool:
        return self.stream.isatty()

    def line(self, text: str) -> None:
        """Say something of use now: a choice made, a file written."""
        if not self.quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """Say what the user should know even in quiet mode."""
        self._print(f"warning: {text}")

    def result(self, text: str) -> None:
        """Print what the command was asked for, to stdout."""
        print(printable(text), file=self._results or sys.stdout, flush=True)

    def section(self, title: str) -> None:
        """Announce a stage."""
        if not self.quiet:
            rule = f"── {title} " + "─" * max(3, 74 - len(title))
            self._print(f"\n\033[1m{rule}\033[0m" if self.is_terminal else f"\n== {title}", raw=True)

    def step(self, record: StepRecord, total_steps: int) -> None:
        self.line(step_line(record, total_steps))

    def progress(self, label: str, total: int | None = None, *, unit: str = "") -> Progress:
        """A counter for work that may take over five seconds; use it as a context manager."""
        return Progress(label, total, unit=unit, console=self)

    def _print(self, text: str, *, raw: bool = False) -> None:
        print(text if raw else printable(text), file=self.stream, flush=True)


class Progress:
    """Counts work towards `total` (None: unknown) and shows how far it is and how long it will take.

    On a terminal a bar that erases itself; elsewhere a plain line every
    `PLAIN_INTERVAL_S` seconds, and one at the end if any was shown before.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        *,
        unit: str = "",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.done = 0
        self._label, self._total, self._unit = label, total, f" {unit}" if unit else ""
        self._console = console or Console()
        self._clock = clock
        self._started = self._last_shown = clock()
        self._shown = False
        self._bar = _Bar(label, total, unit, self._console) if self._wants_bar() else None

    def advance(self, count: int = 1) -> None:
        self.done += count
        if self._bar:
            self._bar.update(self.done)
        elif self._clock() - self._last_shown >= PLAIN_INTERVAL_S:
            self._show()

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif self._shown and error is None:
            self._show()

    def plain_line(self) -> str:
        """The state in words: how much, how fast, how long still."""
        elapsed = self._clock() - self._started
        rate = self.done / elapsed if elapsed > 0 else 0.0
        text = f"{self._label}: {self.done:,}"
        if self._total is not None:
            share = f" ({self.done / self._total:.0%})" if self._total else ""
            text += f"/{self._total:,}{self._unit}{share}"
        else:
            text += self._unit
        if rate > 0:
            text += f", {quantity(rate) if rate >= 10 else f'{rate:.2g}'}{self._unit}/s"
        if rate > 0 and self._total is not None and self.done < self._total:
            return f"{text}, {duration((self._total - self.done) / rate)} to go"
        return (
            f"{text}, {duration(elapsed)} so far" if self.done != self._total else f"{text}, took {duration(elapsed)}"
        )

    def _wants_bar(self) -> bool:
        return self._console.is_terminal and not self._console.quiet

    def _show(self) -> None:
        self._console.line(self.plain_line())
        self._last_shown, self._shown = self._clock(), True


class _Bar:
    """The live bar of a terminal, drawn by rich."""

    def __init__(self, label: str, total: int | None, unit: str, console: Console) -> None:
        from rich.console import Console as RichConsole
        from rich.markup import escape
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._progress = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(escape(unit)),
            TimeElapsedColumn(),
            TextColumn("to go"),
            TimeRemainingColumn(),
            console=RichConsole(file=console.stream),
            transient=True,
        )
        self._task = self._progress.add_task(escape(printable(label)), total=total)

    def start(self) -> None:
        self._progress.start()

    def update(self, done: int) -> None:
        self._progress.update(self._task, completed=done)

    def stop(self) -> None:
        self._progress.stop()
