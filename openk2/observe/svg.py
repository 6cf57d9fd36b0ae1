"""Charts as inline SVG: lines, grouped bars with error bars, a heat map.

Written by hand instead of with a plotting library, because the page's own CSS
then colours them (dark and light alike), their text stays text, a chart is a
few kB, and a report needs nothing but the standard library. All charts share
one view box, so that two columns line up and a phone still shows 10 px text.

A chart is a `<figure>` of the page; `line_picture` makes a file of its own,
with its key and its colours inside.

Invariants: every chart has a title and a description for screen readers, both
axes are named, numbers that are not finite are gaps, and every string is
escaped. Left out: interaction; the figures are in `metrics.jsonl`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from openk2.observe.page import CHART_STYLE, PALETTE, escape

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 26, 40
NUM_COLOURS = 6  # --c0 to --c5 in the page's style
_MAX_POINTS = 500  # of one line: more than the pixels it is drawn on
_HEAT_LEVELS = 12
_LABELLED_BAR = 22.0  # a narrower bar has no room for its value


@dataclass(frozen=True)
class Series:
    """One line: `ys[i]` at `xs[i]`, None for a gap. Without a name it has no legend entry."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    colour: int = 0
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Bars:
    """One bar per category, None for no bar; `errors` are half-lengths of the error bars."""

    name: str
    values: Sequence[float | None]
    errors: Sequence[float | None] = ()
    colour: int = 0


@dataclass(frozen=True)
class Axis:
    """A named axis.

    `log` spaces decades evenly; `percent` writes 0.5 as 50%; `zero` makes it
    start at 0; `whole` marks whole numbers only.
    """

    label: str
    log: bool = False
    percent: bool = False
    zero: bool = False
    whole: bool = False

    def format(self, value: float) -> str:
        return tick_label(value * 100) + "%" if self.percent else tick_label(value)


def tick_label(value: float) -> str:
    """A number for an axis: 0.25, 12, 15k, 2M, 1.5e-3."""
    size = abs(value)
    if value == 0:
        return "0"
    if size < 1e-2:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    for limit, divisor, suffix in ((1e4, 1.0, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M"), (1e12, 1e9, "G")):
        if size < limit:
            return f"{value / divisor:.4g}{suffix}"
    return f"{value:.0e}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (steps of 1, 2, 2.5 or 5 times a power of ten) from `low` to `high`."""
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if span / (factor * power) <= count + 0.5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`; with 2 and 5 times them, or evenly spaced marks, where these are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    stride = max(1, math.ceil(len(decades) / 6))
    factors = (1, 2, 5) if high <= 200 * low else (1,)
    marks = [factor * 10.0**decade for decade in decades[::stride] for factor in factors]
    inside = [mark for mark in marks if low * 0.999 <= mark <= high * 1.001]
    return inside if len(inside) > 1 else ticks(low, high)


class Scale:
    """Maps values to one coordinate of the view box. Equal ends are spread, so that a flat line is drawn."""

    def __init__(self, values: Sequence[float], axis: Axis, start: float, end: float, *, pad: bool) -> None:
        low, high = min(values), max(values)
        if axis.zero:
            low, high = min(low, 0.0), max(high, 0.0)
        if low == high:
            spread = abs(low) / 2 or 0.5
            low, high = (low if axis.zero else low - spread), high + spread
        self.axis, self.start, self.end = axis, start, end
        if axis.log:
            low, high = low / 1.2, high * 1.2
        elif pad:
            margin = (high - low) * 0.06
            low, high = (low if axis.zero and low == 0 else low - margin), high + margin
        self.low, self.high = low, high

    def __call__(self, value: float) -> float:
        if self.axis.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        marks = log_ticks(self.low, self.high) if self.axis.log else ticks(self.low, self.high)
        return [mark for mark in marks if mark == round(mark)] if self.axis.whole else marks


@dataclass(frozen=True)
class _Chart:
    """What is drawn, the sentence that describes it, and the key: names and colours of what is drawn."""

    title: str
    described: str
    drawn: str
    key: Sequence[tuple[str, int]]

    def figure(self) -> str:
        """A part of the page, which colours it."""
        keys = "".join(
            f'<span class="key"><i class="b{colour % NUM_COLOURS}"></i>{escape(name)}</span>'
            for name, colour in self.key
        )
        return (
            f"<figure><figcaption><b>{escape(self.title)}</b>{f'<span>{keys}</span>' if keys else ''}</figcaption>"
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" {self._label()}>{self.drawn}</svg></figure>'
        )

    def picture(self) -> str:
        """A file of its own, at twice the size, in the colours of the page, light and dark."""
        keys = ""
        for number, (name, colour) in enumerate(self.key):
            x, y = LEFT + number % 2 * 200, HEIGHT + 18 + number // 2 * 18
            keys += f'<path class="line k{colour % NUM_COLOURS}" d="M{x} {y - 4}h18"/>{_text(x + 24, y, name, "start")}'
        height = HEIGHT + 12 + 18 * math.ceil(len(self.key) / 2)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{2 * WIDTH}" '
            f'height="{2 * height}" {self._label()}><style>{PALETTE}{CHART_STYLE}</style>'
            f'<rect width="{WIDTH}" height="{height}" fill="var(--card)"/>{self.drawn}{keys}</svg>\n'
        )

    def _label(self) -> str:
        return f'role="img" aria-label="{escape(f"{self.title}: {self.described}")}"'


def line_chart(
    title: str, series: Sequence[Series], x: Axis, y: Axis, *, reference: tuple[float, str] | None = None
) -> str:
    """Lines over `x`, and if given a dashed level with its name; "" where there is nothing to draw."""
    chart = _lines(title, series, x, y, reference)
    return chart.figure() if chart else ""


def line_picture(
    title: str, series: Sequence[Series], x: Axis, y: Axis, *, reference: tuple[float, str] | None = None
) -> str:
    """`line_chart` as an SVG file; "" where there is nothing to draw."""
    chart = _lines(title, series, x, y, reference)
    return chart.picture() if chart else ""


def _lines(
    title: str, series: Sequence[Series], x: Axis, y: Axis, reference: tuple[float, str] | None
) -> _Chart | None:
    usable = [_thin(entry, y) for entry in series]
    xs = [value for entry in usable for value in entry.xs]
    ys = [value for entry in usable for value in entry.ys if value is not None]
    if not ys:
        return None
    scale_x = Scale(xs, x, LEFT, WIDTH - RIGHT, pad=False)
    scale_y = Scale([*ys, reference[0]] if reference else ys, y, HEIGHT - BOTTOM, TOP, pad=True)
    parts = [_grid_y(scale_y)]
    for mark in scale_x.ticks():
        parts.append(_text(scale_x(mark), HEIGHT - BOTTOM + 16, x.format(mark), "middle"))
    if reference:
        level = scale_y(reference[0])
        parts.append(f'<path class="ref" d="M{LEFT} {level:.1f}H{WIDTH - RIGHT}"/>')
        below = level < TOP + 16
        parts.append(_text(WIDTH - RIGHT - 2, level + (14 if below else -5), reference[1], "end"))
    parts += [_line(entry, scale_x, scale_y) for entry in usable]
    described = f"{y.label} by {x.label}, from {tick_label(min(ys))} to {tick_label(max(ys))}"
    return _chart(title, described, x, y, parts, [(entry.name, entry.colour) for entry in series if entry.name])


def bar_chart(title: str, categories: Sequence[str], bars: Sequence[Bars], x: Axis, y: Axis) -> str:
    """Bars side by side in each category, their values above where there is room; "" where there is nothing to draw."""
    values = [value for entry in bars for value in entry.values if _drawable(value, y)]
    if not values:
        return ""
    errors = [error for entry in bars for error in entry.errors if error is not None and math.isfinite(error)]
    tops = [value + max(errors, default=0.0) for value in values if value is not None]
    scale_y = Scale([*tops, 1.0] if y.percent else tops, y, HEIGHT - BOTTOM, TOP, pad=True)
    slot = (WIDTH - LEFT - RIGHT) / len(categories)
    width = min(44.0, slot * 0.84 / len(bars))
    parts = [_grid_y(scale_y)]
    for index, category in enumerate(categories):
        middle = LEFT + slot * (index + 0.5)
        parts.append(_text(middle, HEIGHT - BOTTOM + 16, _shorten(category, slot), "middle"))
        for position, entry in enumerate(bars):
            value = entry.values[index]
            if value is not None and _drawable(value, y):
                error = entry.errors[index] if entry.errors else None
                left = middle + (position - len(bars) / 2) * width
                parts.append(_bar(scale_y, left, width, value, error, entry.colour))
    legend = [(entry.name, entry.colour) for entry in bars if entry.name] if len(bars) > 1 else []
    return _chart(title, f"{y.label} by {x.label}: {', '.join(categories)}", x, y, parts, legend).figure()


@dataclass(frozen=True)
class HeatWords:
    """What a heat map's darkest shade and its crosses mean, and the sentence that describes the whole."""

    darkest: str
    crossed: str
    described: str


def heat_map(
    title: str,
    rows: Sequence[Sequence[float]],
    x: Axis,
    y: Axis,
    words: HeatWords,
    *,
    top: float,
    crossed: Sequence[Sequence[bool]],
    row_names: Sequence[str],
    column_names: Sequence[str],
) -> str:
    """Values from 0 to `top` as shades, row by column, some of them crossed out. "" where there is none."""
    if not rows or not rows[0]:
        return ""
    cell_x, cell_y = (WIDTH - LEFT - RIGHT) / max(map(len, rows)), (HEIGHT - TOP - BOTTOM - 22) / len(rows)
    shades: list[list[str]] = [[] for _ in range(_HEAT_LEVELS + 1)]
    crosses = []
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            cell = f"M{LEFT + j * cell_x:.1f} {TOP + i * cell_y:.1f}h{cell_x:.2f}v{cell_y:.2f}h-{cell_x:.2f}z"
            if crossed[i][j]:
                crosses.append(cell)
            elif math.isfinite(value):
                shades[max(1, min(round(value / top * _HEAT_LEVELS), _HEAT_LEVELS))].append(cell)
    parts = [
        f'<path class="heat" fill-opacity="{level / _HEAT_LEVELS:.2f}" d="{"".join(cells)}"/>'
        for level, cells in enumerate(shades)
        if cells
    ]
    if crosses:
        parts.append(f'<path class="dead" d="{"".join(crosses)}"/>')
    bottom = TOP + cell_y * len(rows)
    for mark in range(0, len(column_names), max(1, math.ceil(len(column_names) / 8))):
        parts.append(_text(LEFT + (mark + 0.5) * cell_x, bottom + 15, column_names[mark], "middle"))
    for mark in range(0, len(row_names), max(1, math.ceil(len(row_names) / 10))):
        parts.append(_text(LEFT - 7, TOP + (mark + 0.5) * cell_y + 4, row_names[mark], "end"))
    parts.append(_heat_legend(words, bool(crosses)))
    return _chart(title, words.described, x, y, parts, [], x_label_at=bottom + 30).figure()


def _thin(entry: Series, axis: Axis) -> Series:
    """At most `_MAX_POINTS` points, each the mean of a run of neighbours; what cannot be drawn becomes a gap."""
    ys = [value if _drawable(value, axis) else None for value in entry.ys]
    size = math.ceil(len(ys) / _MAX_POINTS)
    if size <= 1:
        return Series(entry.name, entry.xs, ys, entry.colour, entry.faint, entry.dots)
    means = []
    for start in range(0, len(ys), size):
        known = [value for value in ys[start : start + size] if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return Series(entry.name, entry.xs[size - 1 :: size] or entry.xs[-1:], means, entry.colour, entry.faint, entry.dots)


def _drawable(value: float | None, axis: Axis) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not axis.log)


def _line(entry: Series, scale_x: Scale, scale_y: Scale) -> str:
    path, drawing = [], False
    dots = []
    for x, y in zip(entry.xs, entry.ys, strict=False):
        if y is not None:
            at = f"{scale_x(x):.1f} {scale_y(y):.1f}"
            path.append(f"{'L' if drawing else 'M'}{at}")
            dots.append(f"M{at}h0")  # a stroke of no length with round ends is a dot
        drawing = y is not None
    style = "line faint" if entry.faint else "line"
    drawn = f'<path class="{style} k{entry.colour % NUM_COLOURS}" d="{"".join(path)}"/>'
    if entry.dots or len(dots) == 1:
        drawn += f'<path class="line dot k{entry.colour % NUM_COLOURS}" d="{"".join(dots)}"/>'
    return drawn


def _bar(scale: Scale, left: float, width: float, value: float, error: float | None, colour: int) -> str:
    top, base, middle = scale(value), scale(max(scale.low, 0.0)), left + width / 2
    top_of_all = top
    drawn = (
        f'<rect class="bar f{colour % NUM_COLOURS}" x="{left + 1:.1f}" y="{min(top, base):.1f}" '
        f'width="{width - 2:.1f}" height="{max(abs(base - top), 0.8):.1f}"/>'
    )
    if error is not None and math.isfinite(error) and error > 0:
        high, low = scale(value + error), scale(max(value - error, scale.low))
        top_of_all = high
        drawn += (
            f'<path class="error" d="M{middle:.1f} {low:.1f}V{high:.1f}M{middle - 4:.1f} {low:.1f}h8'
            f'M{middle - 4:.1f} {high:.1f}h8"/>'
        )
    if width < _LABELLED_BAR:
        return drawn
    label = f"{value * 100:.0f}" if scale.axis.percent else f"{value:.3g}"
    return drawn + _text(middle, top_of_all - 4, label, "middle", "value")


def _grid_y(scale: Scale) -> str:
    marks = scale.ticks()
    lines = "".join(f"M{LEFT} {scale(mark):.1f}H{WIDTH - RIGHT}" for mark in marks)
    labels = "".join(_text(LEFT - 7, scale(mark) + 4, scale.axis.format(mark), "end") for mark in marks)
    return f'<path class="grid" d="{lines}"/>{labels}'


def _heat_legend(words: HeatWords, crossed: bool) -> str:
    parts, left, y = [], float(LEFT), HEIGHT - 15
    for level in range(1, _HEAT_LEVELS + 1):
        shade = f'fill-opacity="{level / _HEAT_LEVELS:.2f}"'
        parts.append(f'<rect class="heat" {shade} x="{left + level * 10:.0f}" y="{y}" width="10" height="10"/>')
    parts.append(_text(left + 4, y + 9, "0", "end", "value"))
    parts.append(_text(left + 136, y + 9, words.darkest, "start", "value"))
    if crossed:
        parts.append(f'<path class="dead" d="M{left + 280:.0f} {y}h10v10h-10z"/>')
        parts.append(_text(left + 295, y + 9, words.crossed, "start", "value"))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    attribute = f' class="{style}"' if style else ""
    return f'<text{attribute} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _shorten(text: str, slot: float) -> str:
    most = max(3, int(slot / 6.5))
    return text if len(text) <= most else text[: most - 1] + "…"


def _chart(
    title: str,
    described: str,
    x: Axis,
    y: Axis,
    parts: Sequence[str],
    key: Sequence[tuple[str, int]],
    *,
    x_label_at: float = HEIGHT - 6,
) -> _Chart:
    middle = (LEFT + WIDTH - RIGHT) / 2
    labels = _text(4, 13, y.label, "start", "axis y") + _text(middle, x_label_at, x.label, "middle", "axis x")
    return _Chart(title, described, labels + "".join(parts), key)
