"""Line plots as SVG, written by hand: the same text from the same numbers, wherever it is made."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

# Ten colours that stay apart for colour-blind readers (Petroff 2021, arXiv:2107.02270).
PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
INK, GRID = "#333333", "#dddddd"
WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 76, 216, 44, 56  # margins; the legend stands on the right


class Axis:
    """From numbers to pixels, linear or logarithmic."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool) -> None:
        self.log, self.start, self.end = log, start, end
        low, high = min(values), max(values)
        if log:
            self.low, self.high = math.log(low), math.log(high)
            pad = 0.04 * (self.high - self.low) or 0.5
            self.low, self.high = self.low - pad, self.high + pad
        else:
            self.low, self.high = 0.0, 1.05 * high or 1.0

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        at = math.log(value) if self.log else value
        return self.start + (at - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers within: 1, 2, 5 of every power of ten, or only 1 where these are many."""
        if not self.log:
            step = 10.0 ** math.floor(math.log10(self.high / 2))
            step *= next(m for m in (1, 2, 5, 10) if self.high / (step * m) <= 6)
            return [step * n for n in range(int(self.high / step) + 1)]
        low, high = math.exp(self.low), math.exp(self.high)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
        ones = [t for t in found if round(math.log10(t), 6) % 1 == 0]
        return ones if len(found) > 9 else found


def number(value: float) -> str:
    """A tick's label."""
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def line_plot(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Points],
    dashed: Sequence[str] = (),
    log_y: bool = True,
) -> str:
    """Every series a line with a mark at each point, over a logarithmic x axis.

    Args:
        title: above the plot.
        x_label: below it.
        y_label: beside it.
        series: points (x, y) by name, in the order of the legend.
        dashed: names of bounds: dark dashed lines.
        log_y: whether the y axis is logarithmic too; else it begins at 0.
    """
    xs = sorted({x for points in series.values() for x, _ in points})
    ys = [y for points in series.values() for _, y in points]
    x_axis = Axis(xs, LEFT, WIDTH - RIGHT, log=True)
    y_axis = Axis(ys, HEIGHT - BOTTOM, TOP, log=log_y)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 24, title, 'font-size="14" font-weight="bold"'),
        _text((LEFT + right) / 2, HEIGHT - 14, x_label, 'text-anchor="middle"'),
        _text(
            18, (TOP + bottom) / 2, y_label,
            f'text-anchor="middle" transform="rotate(-90 18 {(TOP + bottom) / 2:.1f})"',
        ),
    ]  # fmt: skip
    for x in xs:
        out.append(_line([(x_axis(x), TOP), (x_axis(x), bottom)], GRID))
        out.append(_text(x_axis(x), bottom + 18, number(x), 'text-anchor="middle"'))
    for y in y_axis.ticks():
        out.append(_line([(LEFT, y_axis(y)), (right, y_axis(y))], GRID))
        out.append(_text(LEFT - 8, y_axis(y) + 4, number(y), 'text-anchor="end"'))
    colors = iter(PALETTE * (1 + len(series) // len(PALETTE)))
    for n, (name, points) in enumerate(series.items()):
        bound = name in dashed
        color = INK if bound else next(colors)
        more = ' stroke-width="2"' + (' stroke-dasharray="6 4"' if bound else "")
        at = [(x_axis(x), y_axis(y)) for x, y in sorted(points)]
        legend = TOP + 10 + 20 * n
        out.append(_line(at, color, more))
        out.append(_line([(right + 14, legend), (right + 42, legend)], color, more))
        out.append(_text(right + 50, legend + 4, name))
        if not bound:
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in at]
    return "\n".join([*out, "</svg>\n"])


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'.replace(" >", ">")


def _line(points: Points, color: str, more: str = "") -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{joined}" fill="none" stroke="{color}"{more}/>'
