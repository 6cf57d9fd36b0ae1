"""Charts draw what they are given, at the right place, and leave gaps where there is nothing."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from openk2.observe.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Bars,
    HeatWords,
    Scale,
    Series,
    bar_chart,
    heat_map,
    line_chart,
    line_picture,
    log_ticks,
    tick_label,
    ticks,
)  # fmt: skip

X, Y = Axis("step"), Axis("loss, nats")
WORDS = HeatWords("darkest", "crossed", "what is seen")


def parse(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart)


def points(chart: str) -> list[tuple[float, float]]:
    path = next(e for e in parse(chart).iter("path") if (e.get("class") or "").startswith("line"))
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path.get("d") or "")]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 400), (2.9, 9.1), (-3, 5), (1e-9, 3e-9), (1e6, 1.5e6), (99.9, 100)]
)
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert 2 <= len(marks) <= 7
    assert all(low - 1e-9 <= mark <= high * (1 + 1e-9) for mark in marks)
    assert len({tick_label(mark) for mark in marks}) == len(marks) or high / low < 1.01


def test_log_ticks_are_powers_of_ten() -> None:
    assert log_ticks(1e-7, 1e-3) == pytest.approx([1e-7, 1e-6, 1e-5, 1e-4, 1e-3])
    assert log_ticks(0.9, 11) == pytest.approx([1, 2, 5, 10])
    assert len(log_ticks(0.55, 0.9)) >= 3


@pytest.mark.parametrize(
    ("value", "label"),
    [(0, "0"), (0.25, "0.25"), (1.5e-3, "1.5e-3"), (1e-7, "1e-7"), (9000, "9000"), (16384, "16.38k")],
)
def test_tick_labels(value: float, label: str) -> None:
    assert tick_label(value) == label


def test_a_line_runs_from_corner_to_corner() -> None:
    drawn = points(line_chart("Loss", [Series("", [1, 2, 3], [3.0, 2.0, 1.0])], X, Y))
    assert [x for x, _ in drawn] == pytest.approx([LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT], abs=0.1)
    heights = [y for _, y in drawn]
    assert TOP <= heights[0] < heights[1] < heights[2] <= HEIGHT - BOTTOM


def test_what_is_not_finite_is_a_gap() -> None:
    values = [1.0, float("nan"), 2.0, None, float("inf"), 3.0]
    chart = line_chart("Loss", [Series("", range(6), values)], X, Y)
    assert len(points(chart)) == 3 and "nan" not in chart.lower() and "inf" not in chart.lower()


@pytest.mark.parametrize("values", [[], [None, None], [float("nan")]])
def test_nothing_to_draw_is_no_chart(values: list[float | None]) -> None:
    assert line_chart("Loss", [Series("", range(len(values)), values)], X, Y) == ""
    assert bar_chart("Loss", ["a"] * len(values), [Bars("", values)], X, Y) == ""
    assert heat_map("Load", [], X, Y, WORDS, top=1.0, crossed=[], row_names=[], column_names=[]) == ""


@pytest.mark.parametrize("axis", [Y, Axis("x", zero=True), Axis("x", log=True), Axis("x", percent=True)])
def test_one_value_and_a_flat_line_are_drawn(axis: Axis) -> None:
    assert len(points(line_chart("Flat", [Series("", [1, 2], [0.5, 0.5])], X, axis))) == 2
    assert len(points(line_chart("One", [Series("", [7], [0.5])], X, axis))) == 1


def test_a_long_run_is_thinned_to_means() -> None:
    drawn = points(line_chart("Loss", [Series("", range(10_000), [5.0, 7.0] * 5000)], X, Y))
    assert len(drawn) == 500
    assert len({y for _, y in drawn}) == 1  # the mean of each stretch is 6


def test_bars_and_their_errors_have_the_right_length() -> None:
    bars = [Bars("a", [0.5, None], [0.1, None], 0), Bars("b", [1.0, 0.25], [], 1)]
    figure = parse(bar_chart("Success", ["base", "SFT"], bars, Axis("stage"), Axis("success", percent=True, zero=True)))
    heights = [float(e.get("height") or 0) for e in figure.iter("rect")]
    assert heights == pytest.approx([heights[1] / 2, heights[1], heights[1] / 4], abs=0.11)
    error = next(e for e in figure.iter("path") if e.get("class") == "error").get("d") or ""
    low, high = (float(value) for value in re.match(r"M[\d.]+ ([\d.]+)V([\d.]+)", error).groups())  # type: ignore[union-attr]
    assert low - high == pytest.approx(0.2 * heights[1], abs=0.2)


def test_the_heat_map_shades_by_load_and_marks_the_dead() -> None:
    rows = [[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]]
    names = {"row_names": ["1", "2"], "column_names": ["a", "b", "c"]}
    crossed = [[value == 0 for value in row] for row in rows]
    figure = parse(heat_map("Load", rows, Axis("expert"), Axis("layer"), WORDS, top=2.0, crossed=crossed, **names))
    cells = {
        e.get("fill-opacity"): (e.get("d") or "").count("M") for e in figure.iter("path") if e.get("class") == "heat"
    }
    assert cells == {"0.50": 4, "1.00": 1}
    assert next(e for e in figure.iter("path") if e.get("class") == "dead").get("d", "").count("M") == 1
    labels = [e.text for e in figure.iter("text")]
    assert {"layer", "expert", "1", "2", "a", "c", WORDS.darkest, WORDS.crossed} <= set(labels)


def test_a_log_scale_spaces_decades_evenly() -> None:
    scale = Scale([1.0, 100.0], Axis("kl", log=True), 0.0, 1.0, pad=False)
    assert scale(10.0) == pytest.approx(0.5)
    assert scale(100.0) - scale(10.0) == pytest.approx(scale(10.0) - scale(1.0))


def test_every_name_is_escaped() -> None:
    evil = "<b>&\"'"
    chart = line_chart(evil, [Series(evil, [1, 2], [1, 2])], Axis(evil), Axis(evil), reference=(3.0, evil))
    chart += bar_chart(evil, [evil], [Bars(evil, [1]), Bars(evil, [2])], Axis(evil), Axis(evil))
    assert evil not in chart and "&lt;b&gt;" in chart
    assert {e.tag for e in parse(f"<div>{chart}</div>").iter()} == {
        "div", "figure", "figcaption", "b", "span", "i", "svg", "text", "path", "rect",
    }  # fmt: skip


def test_a_picture_is_a_file_of_its_own_with_key_and_colours() -> None:
    """Every class and colour that is drawn is styled inside it, and its key lies within its box."""
    series = [
        Series("<ours>", [1, 2], [1.0, 2.0]),
        Series("theirs", [1, 2], [2.0, 1.0], 1),
        Series("third", [1], [1.5], 2),
    ]
    picture = line_picture("Loss", series, X, Y, reference=(1.5, "goal"))
    root = parse(picture)
    name_space = "{http://www.w3.org/2000/svg}"
    style = root.findtext(f"{name_space}style") or ""
    used = {part for e in root.iter() for part in (e.get("class") or "").split()}
    assert {"line", "k0", "k1", "k2", "ref", "grid", "axis"} <= used
    assert all(f".{part}{{" in style for part in used - {"x", "y"})
    assert all(f"--{name}:" in style for name in re.findall(r"var\(--([\w-]+)\)", picture))
    texts = {e.text: float(e.get("y") or "nan") for e in root.iter(f"{name_space}text")}
    height = float((root.get("viewBox") or "").split()[3])
    assert all(HEIGHT < texts[name] < height for name in ("<ours>", "theirs", "third"))
    assert line_picture("Loss", [Series("", [1], [None])], X, Y) == ""
