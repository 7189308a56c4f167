"""Takes an `Advice`, gives its page: what to do, what that will bring and cost, and the evidence for it."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from headstart.metrics import Estimate
from headstart.parallel import Progress, no_progress
from headstart.publish.drawings import Chart
from headstart.publish.pages import Report, to_json_file, write_page
from headstart.publish.report_charts import draw_depths, draw_images
from headstart.publish.report_words import say_name, say_percent
from headstart.publish.way_charts import Way, draw_costs
from headstart.training.advice import Advice, Candidate, say_time
from headstart.training.facts import fit_power_law

__all__ = ["write_advice_page"]


def write_advice_page(
    advice: Advice,
    page: Path,
    *,
    data: Sequence[str] = (),
    command: Sequence[str] = (),
    figures: bool = False,
    progress: Progress = no_progress,
) -> Report:
    """Write the page of an advice, and its figures as JSON beside it.

    Args:
        page: as `check_page` gives it.
        data: the names of the data that it is on, as far as they are known.
        command: the words that do what is advised, with the options that it was asked with, where known.
        figures, progress: as in `report`.

    Raises:
        ResourceError: out of disk or permission.
    """
    progress("writing the report", 0, 0)
    ways = (advice.chosen, *advice.others)
    is_measured = bool(advice.facts.depths)
    costs = _draw(advice, ways) if is_measured else None
    facts = advice.facts
    evidence = [c for c in (draw_depths(facts), draw_images(facts)) if c] if is_measured else []
    name = say_name(data[0]) if data else ""
    network = ["--backbone", advice.backbone] if advice.networks else []
    told = f"{facts.images:,} images in {facts.classes:,} classes"
    content = {
        "kind": "advice",
        "title": f"Advice on {name or told}",
        "data": name or told,
        "about": f"{told} · {advice.backbone}" if name else advice.backbone,
        "words": _tell(advice),
        "advice": advice,
        "ways": [
            (number, way, why, say_time(way.bill.seconds))
            for number, (way, why) in enumerate(zip(ways, ("", *advice.sentences), strict=True), 1)
        ],
        "costs": costs,
        "evidence": evidence,
        "budget": say_time(advice.budget_s),
        "command": shlex.join(command or ["headstart", "fit", *(data or ["DATA"]), *network]),
        "has_options": bool(command),
    }
    charts = [*([costs] if costs else []), *evidence] if figures else []
    tables = {".json": to_json_file(advice.to_json())}
    return write_page(page, "advice.html", content, tables=tables, charts=charts)


def _draw(advice: Advice, ways: Sequence[Candidate]) -> Chart:
    words = (
        "Expected accuracy against the minutes that it takes, with 95 % intervals; numbers are those of the "
        "table. Large and orange: what is advised. The vertical line is the time that there is."
    )
    shown = [
        Way(w.name, w.bill.seconds / 60, Estimate(w.accuracy, w.low, w.high), w is advice.chosen)
        for w in ways
    ]
    return draw_costs(shown, words=words, upwards="expected accuracy", bound=advice.budget_s / 60)


def _tell(advice: Advice) -> list[str]:
    """Say what is advised and why, for people who read no tables."""
    case, chosen, facts = advice.case, advice.chosen, advice.facts
    if not facts.depths:
        return [f"Train a {chosen.name}: {case.words}."]
    words = [
        f"Train {chosen.name} on {advice.backbone}: it takes {say_time(chosen.bill.seconds)}, and "
        f"{say_percent(chosen.low)} to {say_percent(chosen.high)} of new images are expected to be right.",
        f"These are {case.words}.",
    ]
    if advice.others:
        words.append(
            "The probability that no other way in that time is clearly better: "
            f"{say_percent(advice.sure)}."
        )
    law = fit_power_law(facts.curve)
    if law is not None:
        more = 4 * facts.images
        low, high = law.interval(more)
        words.append(
            f"With four times as many images a linear probe would have {say_percent(low)} to "
            f"{say_percent(high)}, by the course of its accuracy."
        )
    return [*words, *(f"{change[:1].upper()}{change[1:]}." for change in advice.changes)]
