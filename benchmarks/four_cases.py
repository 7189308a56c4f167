"""Draws the pictures of docs/four-cases.md from what `advice.py` measured and kept.

    python benchmarks/four_cases.py docs/pictures/four-cases

map.svg places every task by its images and by how far the network's statistics have moved on them; a file
a case shows what each way of training reached on the test images of one task, with the minutes of processor
time that it took. The files are light or dark as the page around them is.
"""

import argparse
import json
import math
from pathlib import Path

from markupsafe import Markup

from headstart.metrics import wilson_interval
from headstart.publish.drawings import Frame, draw_frame
from headstart.training.advice import MANY_IMAGES, SIMILAR_SHIFT, find_case
from headstart.training.facts import Facts

HERE = Path(__file__).parent

# The task that stands for a case, and what it is called.
SHOWN = {
    1: ("hymenoptera-all", "ants and bees, 245 photographs"),
    2: ("hands-10", "hands that show digits, 100 photographs"),
    3: ("cifar10-100", "CIFAR-10, 1,000 pictures of 32 x 32 pixels"),
    4: ("digits-100", "digits of 8 x 8 pixels, 1,000 images"),
}
WAYS = {
    "linear-probe": "linear probe",
    "linear-probe auto": "linear probe, best depth",
    "shallow-probe": "shallow probe",
    "partial blocks.5": "trained above blocks.5",
    "partial blocks.3": "trained above blocks.3",
    "scratch": "small CNN from scratch",
}
# What the map names.
NAMED = {
    "hymenoptera-all": "ants and bees",
    "cifar10-100": "CIFAR-10",
    "hands-10": "hands, 100",
    "digits-100": "digits",
    "cells-all": "solar cells",
    "signs-all": "traffic signs",
    "cells-30": "solar cells, 60",
}
KINDS = {1: "a", 2: "b", 3: "c", 4: "d"}
COLOURS = {
    "light": ("#fff", "#1f2328", "#59616b", "#e4e7eb", "#2a5bd7", "#b8500b", "#0e7a5f", "#8a3ab9"),
    "dark": (
        "#16181c",
        "#e6e8eb",
        "#a6adb7",
        "#31363d",
        "#86a8ff",
        "#f0965a",
        "#4cc9a4",
        "#cf9bf2",
    ),
}
STYLE = (
    "svg{{background:{0};color:{1};font:13px system-ui,sans-serif}}text{{fill:{2}}}.strong{{fill:{1}}}"
    ".grid{{stroke:{3}}}.axis{{stroke:{2}}}.a{{--c:{4}}}.b{{--c:{5}}}.c{{--c:{6}}}.d{{--c:{7}}}.e{{--c:{2}}}"
    ".dot{{fill:var(--c)}}.whisker{{stroke:var(--c);stroke-width:2}}.key{{fill:var(--c);font-weight:600}}"
    ".line{{fill:none;stroke:{2}}}.dash{{stroke-dasharray:4 4}}"
)
WIDTH, ROW, NAMES, TIMES = 480, 34, 184, 64


def read_lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (HERE / name).read_text().splitlines()]


def colour(svg: Markup) -> str:
    """Put the style of a file of its own into a drawing."""
    light, dark = (STYLE.format(*COLOURS[name]) for name in ("light", "dark"))
    style = f"<style>{light}@media(prefers-color-scheme:dark){{{dark}}}</style>"
    head, tail = svg.split("<title>", 1)
    return f"{head}{style}<title>{tail}\n"


def draw_map(tasks: dict[str, Facts]) -> Markup:
    """Place every task by its number of images and by the shift of its statistics, with its case."""
    low, high = math.log10(0.03), math.log10(1)
    frame = Frame(40, 4000, low, high, is_log=True, width=WIDTH, height=380)
    content = [
        frame.line([(MANY_IMAGES, low), (MANY_IMAGES, high)], "dash"),
        frame.line([(40, math.log10(SIMILAR_SHIFT)), (4000, math.log10(SIMILAR_SHIFT))], "dash"),
    ]
    for value in (0.03, 0.1, 0.3, 1):
        content.append(frame.word(38, frame.y(math.log10(value)) + 4, f"{value:g}", anchor="end"))
    for name, facts in tasks.items():
        case = find_case(facts)
        x, y = facts.images, math.log10(facts.shift[-1])
        told = f"{name}: {x:,} images, {facts.shift[-1]:.2f} nats, case {case.number}"
        content.append(frame.dot(x, y, f"dot {KINDS[case.number]}", radius=5, title=told))
        if name in NAMED:
            left = x > 900
            place = frame.x(x) + (-9 if left else 9)
            anchor = "end" if left else "start"
            content.append(frame.word(place, frame.y(y) + 4, NAMED[name], "strong", anchor))
    content.append(frame.word(4, 16, "shift of the statistics, in nats"))
    corners = {1: (75, 0.034), 2: (60, 0.86), 3: (3700, 0.034), 4: (3700, 0.86)}
    for number, (x, y) in corners.items():
        anchor = "end" if number in (3, 4) else "start"
        words = f"case {number}"
        content.append(
            frame.word(frame.x(x), frame.y(math.log10(y)), words, f"key {KINDS[number]}", anchor)
        )
    return draw_frame(
        frame, content, title="Where the tasks lie",
        words="Every task by its number of training images and by how far the statistics before the last "
        "BatchNorm layer have moved from those of the pre-training. The colour is the case that it was "
        "given, in which two further measurements count.",
        axes=("training images", ""), ticks=[(float(v), f"{v:,}") for v in (50, 100, 300, 1000, 3000)],
    )  # fmt: skip


def draw_case(number: int, runs: list[dict]) -> Markup:
    """Draw what each way reached on a task, a row each, with its 95 % interval and its minutes."""
    ways = [way for way in WAYS if any(run["arm"] == way for run in runs)]
    found = {run["arm"]: run for run in runs}
    height = 66 + ROW * len(ways) + 40
    images = next(run["images"] for run in runs if "images" in run)  # the same for all
    estimates = {way: wilson_interval(found[way]["test"] * images, images) for way in ways}
    low = math.floor(min(e.low for e in estimates.values()) * 10) / 10
    right_edge = WIDTH - TIMES

    def place(value: float) -> float:
        return round(NAMES + (value - low) / (1 - low) * (right_edge - NAMES), 1)

    bottom = 58 + ROW * len(ways)
    parts = [word(12, 26, f"Case {number}: {SHOWN[number][1]}", "strong")]
    parts.append(word(WIDTH - 12, 48, "processor time", "", "end"))
    size = 0.1 if low < 0.8 else 0.02
    for step in range(round((1 - low) / size) + 1):
        x = place(low + step * size)
        parts.append(line(x, x, 54, bottom, "grid"))
        parts.append(word(x, bottom + 18, f"{low + step * size:.3g}", "", "middle"))
    best = max(ways, key=lambda way: found[way]["test"])
    for row, way in enumerate(ways):
        y, e = 58 + ROW * row + ROW / 2, estimates[way]
        kind = KINDS[number] if way == best else "e"
        parts.append(word(NAMES - 14, y + 4, WAYS[way], "strong" if way == best else "", "end"))
        parts.append(line(place(e.low), place(e.high), y, y, f"whisker {kind}"))
        form = '<circle class="dot {}" cx="{}" cy="{}" r="5"><title>{}</title></circle>'
        told = f"{WAYS[way]}: {e.value:.3f} ({e.low:.3f} to {e.high:.3f})"
        parts.append(Markup(form).format(kind, place(e.value), y, told))
        x = min(place(e.value), right_edge - 16)
        parts.append(word(x, y - 9, f"{e.value:.3f}", f"key {kind}", "middle"))
        seconds = found[way]["cpu_s"]
        told = f"{seconds / 60:.1f} min" if seconds >= 60 else f"{max(seconds, 1):.0f} s"
        parts.append(word(WIDTH - 12, y + 4, told, "", "end"))
    axis = f"accuracy on {images:,} test images, 95 % interval"
    parts.append(word((NAMES + right_edge) / 2, bottom + 38, axis, "", "middle"))
    rows = "; ".join(f"{WAYS[w]} {estimates[w].value:.3f}" for w in ways)
    form = (
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {} {}">'
        "<title>{}</title><desc>{}</desc>{}</svg>"
    )
    title = f"What each way reached: {SHOWN[number][1]}"
    return Markup(form).format(WIDTH, height, title, f"{axis}: {rows}.", Markup("").join(parts))


def word(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> Markup:
    form = '<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>'
    return Markup(form).format(kind, x, y, anchor, text)


def line(x1: float, x2: float, y1: float, y2: float, kind: str) -> Markup:
    form = '<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>'
    return Markup(form).format(kind, x1, x2, y1, y2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {e["task"]: Facts.from_json(e["facts"]) for e in read_lines("advice-facts.jsonl")}
    runs = read_lines("advice-results.jsonl")
    (folder / "map.svg").write_text(colour(draw_map(tasks)), encoding="utf-8")
    for number, (task, words) in SHOWN.items():
        assert find_case(tasks[task]).number == number, task
        own = [run for run in runs if run["task"] == task]
        (folder / f"case-{number}.svg").write_text(colour(draw_case(number, own)), encoding="utf-8")
        print(f"case {number}: {words}, {len(own)} ways")


if __name__ == "__main__":
    main()
