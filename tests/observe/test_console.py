"""Step lines say what was measured, progress says how long it will take, results alone reach stdout."""

from __future__ import annotations

import io

import pytest

from openk2.observe.console import Console, Progress, byte_size, duration, printable, quantity, step_line
from openk2.observe.metrics import StepRecord

RECORD = StepRecord(
    step=12, stage="pretrain", loss=3.21, tokens=196_608, tokens_per_s=8123.0, wall_s=24.0, bits_per_byte=1.93,
    matmul_share=0.31, grad_norm=0.84, update_rms={"muon.experts": 0.21, "muon.router": 0.19, "adamw.head": 0.003},
    max_logit=14.25, clipped_heads=1, load_ratio=1.8, dead_experts=2, eta_s=245.0,
)  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_step_line_shows_each_figure_once() -> None:
    line = step_line(RECORD, 400)
    for part in ("pretrain  12/400", "loss 3.2100", "bpb 1.930", "8.1k tok/s", "peak 31%", "gnorm 0.84",
                 "rms muon 0.2 adamw 0.003", "logit 14.2", "clipped 1", "load 1.80x dead 2", "eta 4m05s"):  # fmt: skip
        assert line.count(part) == 1, part
    assert "\n" not in line


def test_the_step_line_leaves_out_what_was_not_measured() -> None:
    bare = StepRecord(
        step=1, stage="rl", loss=0.5, tokens=10, tokens_per_s=5.0, wall_s=2.0, extra={"reward_mean": 0.125}
    )
    assert step_line(bare, 20) == "rl  1/20  loss 0.5000  reward_mean 0.125  5 tok/s"


def test_only_results_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.section("Pre-training")
    console.step(RECORD, 400)
    console.warn("two threads, not four")
    console.result("42")
    captured = capsys.readouterr()
    assert captured.out == "42\n"
    assert "Pre-training" in captured.err and "loss 3.2100" in captured.err and "two threads" in captured.err


def test_quiet_keeps_warnings_and_results(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.section("Pre-training")
    console.step(RECORD, 400)
    console.line("hello")
    with console.progress("reading", 10) as progress:
        progress.advance(10)
    console.warn("careful")
    console.result("42")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("42\n", "warning: careful\n")


def test_plain_progress_speaks_every_few_seconds_and_at_the_end() -> None:
    now = [0.0]
    stream = io.StringIO()
    with Progress("packing", 100, unit="docs", console=Console(stream=stream), clock=lambda: now[0]) as progress:
        for _ in range(100):
            now[0] += 0.12
            progress.advance()
    assert stream.getvalue().splitlines() == [
        "packing: 42/100 docs (42%), 8.3 docs/s, 7s to go",
        "packing: 84/100 docs (84%), 8.3 docs/s, 2s to go",
        "packing: 100/100 docs (100%), 8.3 docs/s, took 12s",
    ]


def test_short_work_is_silent_off_a_terminal() -> None:
    stream = io.StringIO()
    with Progress("packing", 2, console=Console(stream=stream), clock=lambda: 0.0) as progress:
        progress.advance(2)
    assert stream.getvalue() == ""


def test_progress_without_a_total_counts() -> None:
    now = [0.0]
    progress = Progress("reading", unit="files", console=Console(stream=io.StringIO()), clock=lambda: now[0])
    now[0] = 4.0
    progress.advance(8)
    assert progress.plain_line() == "reading: 8 files, 2 files/s, 4s so far"


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with Progress("packing [bold]", 3, unit="docs", console=Console(stream=stream)) as progress:
        progress.advance(3)
    assert "packing [bold]" in stream.getvalue() and "3/3" in stream.getvalue()


def test_text_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\u202ec\n\tü😀") == "a\\x1b[2Jb\\r\\u202ec\n\tü😀"
    stream = io.StringIO()
    Console(stream=stream).warn("\x1b]0;title\x07")
    assert "\x1b" not in stream.getvalue() and "\x07" not in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (59.6, "1m00s"), (245, "4m05s"), (3599.7, "1h00m"), (7800, "2h10m"), (-1, "0s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_quantities_and_sizes() -> None:
    assert [quantity(value) for value in (0, 950, 8123, 999_950, 2_400_000, 3e13)] == [
        "0", "950", "8.1k", "1000k", "2.4M", "3.00e+13",
    ]  # fmt: skip
    assert [byte_size(value) for value in (950, 3_250_586, 5 << 40)] == ["950 B", "3.1 MiB", "5.0 TiB"]
