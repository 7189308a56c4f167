"""Takes a `Comparison`, gives its page: which way is better, how surely and at what price."""

from pathlib import Path
from typing import Any

from headstart.parallel import Progress, no_progress
from headstart.publish.pages import Report, to_json_file, write_page
from headstart.publish.report_words import (
    name_data,
    say_part,
    say_percent,
    tell_value,
    write_command,
)
from headstart.publish.way_charts import Way, draw_costs, draw_courses
from headstart.runs.comparison import Comparison, Contender, Pair
from headstart.training.advice import say_time

__all__ = ["write_comparison_page"]

PAIRS = 60  # that are shown; all are in the JSON
SETTINGS = 40
CONTENDERS = 12  # whose settings stand side by side


def write_comparison_page(
    comparison: Comparison,
    page: Path,
    *,
    figures: bool = False,
    progress: Progress = no_progress,
) -> Report:
    """Write the page of a comparison, and its figures as JSON beside it.

    Args:
        page: as `check_page` gives it.
        figures, progress: as in `report`.

    Raises:
        ResourceError: out of disk or permission.
    """
    progress("writing the report", 0, 0)
    contenders = comparison.contenders
    ways = [Way(c.name, c.minutes, c.accuracy, c.undominated, c.runs) for c in contenders]
    words = (
        f"Accuracy on {comparison.images:,} images against the minutes of training. Large and orange: no "
        "other is as good in accuracy, time, size and speed alike. The thin lines are 95 % intervals."
    )
    costs = draw_costs(ways, words=words, upwards="accuracy")
    courses = [c for c in (draw_courses(ways, name) for name in ("accuracy", "loss")) if c]
    content = {
        "kind": "comparison",
        "title": f"Comparison: {', '.join(c.name for c in contenders)}"[:200],
        "data": _name_data(comparison),
        "words": _tell(comparison),
        "comparison": comparison,
        "what": _say_images(comparison),
        "contenders": contenders,
        "pairs": _choose_pairs(comparison),
        "costs": costs,
        "courses": courses,
        "differing": _list_differing(contenders[:CONTENDERS]),
        "details": [_describe(c) for c in contenders],
    }
    tables = {".json": to_json_file(comparison.to_json())}
    charts = [costs, *courses] if figures else []
    return write_page(page, "comparison.html", content, tables=tables, charts=charts)


def _name_data(comparison: Comparison) -> str:
    """The data that the runs were trained on, where all say the same."""
    named = {name_data(run) or run.root.name for c in comparison.contenders for run in c.runs}
    count = len(comparison.contenders)
    [name] = named if len(named) == 1 else [""]
    return f"{count:,} ways on {name}" if name else f"{count:,} ways"


def _say_images(comparison: Comparison) -> str:
    groups = ""
    if comparison.units < comparison.images:
        groups = f", in {comparison.units:,} groups of images that belong together"
    return f"{comparison.images:,} {say_part(comparison.part)}{groups}"


def _tell(comparison: Comparison) -> list[str]:
    """Say what was found, for people who read no tables."""
    best, *others = comparison.contenders
    e = best.accuracy
    words = [
        comparison.conclude(),
        f"{best.name} is right on {say_percent(e.value)} of the images; on new ones of the same kind expect "
        f"{say_percent(e.low)} to {say_percent(e.high)}.",
    ]
    for contender in others[:5]:
        pair = comparison.find(best.name, contender.name)
        d = pair.contrast.difference
        words.append(
            f"Against {contender.name} it gains {100 * d.value:.1f} points ({100 * d.low:+.1f} to "
            f"{100 * d.high:+.1f}): {_judge(pair)}."
        )
    quickest = min(comparison.contenders, key=lambda c: c.minutes)
    smallest = min(comparison.contenders, key=lambda c: c.megabytes)
    other = f"; {best.name} took {say_time(60 * best.minutes)}" if quickest is not best else ""
    words.append(f"{quickest.name} took the least time, {say_time(60 * quickest.minutes)}{other}.")
    if smallest is not best:
        words.append(
            f"{smallest.name} is the smallest, {smallest.megabytes:.1f} MB; {best.name} has "
            f"{best.megabytes:.1f} MB."
        )
    return words


def _judge(pair: Pair) -> str:
    return "a difference that can be told" if pair.distinguishable else pair.verdict


def _choose_pairs(comparison: Comparison) -> list[Pair]:
    """All pairs; where they are many, those with the best contender."""
    best = comparison.contenders[0].name
    every = comparison.pairs
    return [p for p in every if len(every) <= PAIRS or best in (p.first, p.second)][:PAIRS]


def _list_differing(contenders: tuple[Contender, ...]) -> list[tuple[str, list[str]]]:
    """(setting, its value of each contender) of those settings that differ, of the first run of each.

    A setting that a single one has belongs to its strategy; it is listed where somebody chose it.
    """
    firsts = [c.runs[0] for c in contenders]
    rows = [
        ("strategy", [run.strategy for run in firsts]),
        ("backbone", [run.backbone for run in firsts]),
    ]
    names = dict.fromkeys(name for run in firsts for name in run.settings)
    for name in names:
        entries = [run.settings.get(name, {}) for run in firsts]
        values = [tell_value(entry.get("value")) for entry in entries]
        chosen = any(entry.get("origin") in ("user", "advised") for entry in entries)
        if name not in ("strategy", "backbone", "seed") and (
            chosen or len({*values, tell_value(None)}) > 2
        ):
            rows.append((name, values))
    return [(name, values) for name, values in rows if len(set(values)) > 1][:SETTINGS]


def _describe(contender: Contender) -> dict[str, Any]:
    """What stands behind a contender: its runs, and the command that repeats the first."""
    first = contender.runs[0]
    rows = [
        ("runs", ", ".join(str(run.folder) for run in contender.runs)),
        ("seeds", ", ".join(map(str, contender.seeds))),
        ("strategy", f"{first.strategy} on {first.backbone}"),
        ("trained on", f"{first.images.get('train', 0):,} images"),
    ]
    if first.data is not None:
        rows.append(("repeats it", write_command(first)))
    return {"name": contender.name, "rows": rows, "warnings": first.warnings}
