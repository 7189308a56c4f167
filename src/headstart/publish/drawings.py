"""Takes figures, gives charts as SVG: for a page, whose style colours them, or each as a file of its own.

The elements carry classes and no colours, so that one drawing serves a light and a dark page and print. What
a chart shows stands in a title and a description inside it, for those who do not see it. Lengths are in px.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from headstart.errors import printable

__all__ = ["Chart", "Frame", "Labels", "draw_frame", "floor_accuracy", "list_ticks", "to_file"]

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 32, 44
WIDER = (
    12  # more on the left and below where a drawing is wide, whose letters are larger on a phone
)
TICKS = 5
LABEL_PX = (26, 19)  # width and height of a number beside a point

# The style of a chart that is a file of its own.
FILE_STYLE = (
    "svg{background:#fff;color:#1f2328;font:13px system-ui,sans-serif}text{fill:#59616b}"
    ".grid{stroke:#e4e7eb}.axis{stroke:#8b949e}.a{--c:#2a5bd7}.b{--c:#b8500b}.c{--c:#767d86}"
    ".k0{--c:#2a5bd7}.k1{--c:#b8500b}.k2{--c:#0f7a5a}.k3{--c:#9b3f86}.k4{--c:#6b5b00}"
    ".k5{--c:#00708a}.k6{--c:#4b5563}.dots{stroke-dasharray:1 4}"
    ".line{fill:none;stroke:var(--c);stroke-width:2}.dash{stroke-dasharray:4 4}"
    ".dot{fill:var(--c)}.bar{fill:var(--c);opacity:.8}.band{fill:var(--c);opacity:.15}"
    ".whisker{stroke:var(--c)}.key{fill:var(--c);font-weight:600}.ring{fill:none;stroke:var(--c);stroke-width:1.5}"
)


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart, with the same figures as a table.

    Attributes:
        name: of its file.
        title: what it is about.
        words: what it shows, in a sentence or two.
        svg: the drawing.
        columns: the heads of the table.
        rows: its cells.
        is_wide: whether it takes the width of the page.
    """

    name: str
    title: str
    words: str
    svg: Markup
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_wide: bool = False


class Labels:
    """Numbers beside points, none upon another."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float]] = []

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Give the free place at or below this one, in px."""
        while any(abs(x - u) < LABEL_PX[0] and abs(y - v) < LABEL_PX[1] for u, v in self._taken):
            y += 1
        self._taken.append((x, y))
        return x, y


@dataclasses.dataclass(frozen=True)
class Frame:
    """Axes from `low` to `high` across and from `bottom` to `top` upwards, as places in the drawing.

    Attributes:
        low, high, bottom, top: the ends of the axes.
        is_log: whether the axis across is one of logarithms.
        width, height: of the whole drawing.
    """

    low: float
    high: float
    bottom: float
    top: float
    is_log: bool = False
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def left(self) -> int:
        """Where the axis across begins, in px."""
        return LEFT + WIDER * (self.width > WIDTH)

    @property
    def base(self) -> int:
        """Where the axis upwards begins, in px."""
        return self.height - BOTTOM - WIDER * (self.width > WIDTH)

    @property
    def head(self) -> int:
        """Where the axis upwards ends, in px."""
        return TOP + WIDER * (self.width > WIDTH)

    def x(self, value: float) -> float:
        """Place a value on the axis across."""
        low, high, at = self.low, self.high, value
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(value)
        share = (at - low) / ((high - low) or 1)
        return round(self.left + share * (self.width - self.left - RIGHT), 1)

    def y(self, value: float) -> float:
        """Place a value on the axis upwards."""
        share = (value - self.bottom) / ((self.top - self.bottom) or 1)
        return round(self.base - share * (self.base - self.head), 1)

    def line(self, points: Iterable[tuple[float, float]], kind: str) -> Markup:
        """Join points by a line."""
        places = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)
        return Markup('<polyline class="line {}" points="{}"/>').format(kind, places)

    def band(self, points: Sequence[tuple[float, float, float]], kind: str) -> Markup:
        """Fill what is between a lower and an upper line, of points (x, lower, upper)."""
        places = [f"{self.x(x)},{self.y(low)}" for x, low, _ in points]
        places += [f"{self.x(x)},{self.y(high)}" for x, _, high in reversed(points)]
        return Markup('<polygon class="band {}" points="{}"/>').format(kind, " ".join(places))

    def dot(self, x: float, y: float, kind: str, *, radius: float = 4, title: str = "") -> Markup:
        """Draw a point, with words that show where it is pointed at."""
        told = Markup("<title>{}</title>").format(printable(title)) if title else Markup("")
        form = '<circle class="{}" cx="{}" cy="{}" r="{}">{}</circle>'
        return Markup(form).format(kind, self.x(x), self.y(y), radius, told)

    def whisker(self, x: float, low: float, high: float, kind: str) -> Markup:
        """Draw an interval."""
        form = '<line class="whisker {0}" x1="{1}" x2="{1}" y1="{2}" y2="{3}"/>'
        return Markup(form).format(kind, self.x(x), self.y(low), self.y(high))

    def bar(self, x: float, width: float, height: float, kind: str) -> Markup:
        """Draw a bar from the bottom to a height; its place and width are in the axis' units."""
        left, right, top = self.x(x), self.x(x + width), self.y(height)
        form = '<rect class="bar {}" x="{}" y="{}" width="{}" height="{}"/>'
        base = self.y(self.bottom)
        return Markup(form).format(
            kind, left, top, round(right - left, 1), round(max(0, base - top), 1)
        )

    def word(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> Markup:
        """Write at a place in the drawing, which is in px."""
        form = '<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>'
        return Markup(form).format(kind, x, y, anchor, printable(text))


def draw_frame(
    frame: Frame,
    content: Iterable[Markup],
    *,
    title: str,
    words: str,
    axes: tuple[str, str],
    ticks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Draw the axes with their names around a chart.

    Args:
        content: what is in the frame.
        title, words: for those who do not see it.
        axes: the names of the axis across and the one upwards; "" where the values mean nothing.
        ticks: of the axis across, each with its text.
    """
    parts = []
    for value in _choose_values(frame.bottom, frame.top) if axes[1] else ():
        y = frame.y(value)
        form = '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
        parts.append(Markup(form).format(frame.left, frame.width - RIGHT, y, y))
        parts.append(frame.word(frame.left - 8, y + 4, f"{value:g}", anchor="end"))
    base = frame.base
    for value, text in ticks:
        parts.append(frame.word(frame.x(value), base + 18, text, anchor="middle"))
    form = '<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>'
    parts.append(Markup(form).format(frame.left, frame.width - RIGHT, base, base))
    parts += content
    parts.append(
        frame.word((frame.left + frame.width) / 2, frame.height - 6, axes[0], anchor="middle")
    )
    parts.append(frame.word(4, 16, axes[1]))
    form = (
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {} {}">'
        "<title>{}</title><desc>{}</desc>{}</svg>"
    )
    told = printable(f"{words} Upwards: {axes[1]}." if axes[1] else words)
    return Markup(form).format(
        frame.width, frame.height, printable(title), told, Markup("").join(parts)
    )


def to_file(chart: Chart) -> bytes:
    """Make the chart a file of its own, with its title above."""
    style = Markup("<style>{}</style>").format(Markup(FILE_STYLE))
    head, tail = chart.svg.split("<title>", 1)
    return f"{head}{style}<title>{tail}\n".encode()


def _choose_values(low: float, high: float) -> list[float]:
    """Choose about `TICKS` round values between two."""
    rough = max(high - low, 1e-9) / TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * k for k in (1, 2, 2.5, 5, 10) if size * k >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [round(k * step, 9) for k in range(first, last + 1)]


def list_ticks(low: float, high: float, most: int = 6) -> list[tuple[float, str]]:
    """Choose whole numbers between two."""
    step = max(1, math.ceil((high - low) / most))
    return [(float(v), f"{v:,}") for v in range(math.ceil(low), math.floor(high) + 1, step)]


def floor_accuracy(value: float) -> float:
    """Where an axis of accuracies begins: the tenth below, at most 0.9."""
    return min(0.9, max(0.0, math.floor(10 * value - 0.01) / 10))
