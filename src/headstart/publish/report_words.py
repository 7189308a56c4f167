"""Takes the record of a run, gives what its report says of it in words: parts, evidence, the command.

A record may come from anywhere; what is not as a run writes it is left out, and nothing here fails on it.
"""

import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.runs.record import Run
from headstart.training.facts import Facts
from headstart.training.settings import FIELDS

__all__ = [
    "find_best_epoch",
    "name_data",
    "name_places",
    "read_advice",
    "read_facts",
    "say_metric",
    "say_name",
    "say_part",
    "say_percent",
    "shorten",
    "tell_evidence",
    "tell_value",
    "write_command",
]

EVIDENCE_LENGTH = 300
SHORT = 20  # letters of a name in the margin of the confusion matrix

NAMES = {
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "brier": "Brier score",
    "roc_auc": "ROC area",
    "average_precision": "PR area",
}

WHAT = {
    "val": "validation images",
    "cross-validation": "training images, each predicted by a classifier that had not seen it",
    "all": "images",
}


def say_percent(value: float) -> str:
    """Write a fraction as a percentage."""
    return f"{100 * value:.1f} %"


def say_metric(name: str) -> str:
    """Name a figure as people do."""
    words = name.replace("_", " ")
    return NAMES.get(name) or (words.replace("top ", "top-") if name.startswith("top_") else words)


def name_data(run: Run) -> str:
    """Name what a run was trained on; "" for data in memory."""
    data = run.data[0] if isinstance(run.data, tuple) else run.data
    return "" if data is None else data.name


def shorten(name: str, most: int = SHORT) -> str:
    """Leave out the middle of a long name: those that begin alike end differently."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"


def say_name(path: str) -> str:
    """Name data by the last part of its path."""
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or path


def say_part(part: str) -> str:
    """Say which images a run was measured on, after their number."""
    return WHAT.get(part, f"images of the {part} split")


def tell_evidence(evidence: Mapping[str, Any]) -> str:
    """Evidence on one line of bounded length."""
    return "; ".join(f"{n.replace('_', ' ')}: {tell_value(v)}" for n, v in evidence.items())[
        :EVIDENCE_LENGTH
    ]


def tell_value(value: Any) -> str:
    """Write a value of a record: a number of four digits, a dash for none, whatever else in words."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return " ".join(f"{str(n).replace('_', ' ')} {tell_value(v)}" for n, v in value.items())
    if isinstance(value, list):
        return ", ".join(tell_value(v) if not isinstance(v, list) else _tell_pair(v) for v in value)
    return str(value)[:EVIDENCE_LENGTH]


def _tell_pair(value: list[Any]) -> str:
    return " → ".join(map(tell_value, value))


def find_best_epoch(run: Run) -> int | None:
    """The epoch that was kept, as far as it is on record."""
    training = run.decisions.facts.get("training")
    best = training.get("best_epoch") if isinstance(training, dict) else None
    return best if isinstance(best, int) and 0 <= best <= len(run.history) else None


def read_facts(run: Run) -> Facts | None:
    """The facts of the advice that a run followed; they may come from anywhere."""
    try:
        facts = Facts.from_json(run.decisions.facts["advice"]["facts"])
        numbers = [
            *(v for d in facts.depths for v in (d.accuracy, d.error, d.log_loss)),
            *(v for p in facts.curve for v in (p.images, p.accuracy, p.error)),
            facts.images,
        ]
        _ = [d.cut for d in (*facts.depths, *facts.singles)]  # which raises where they are no names
        usable = all(math.isfinite(v) and 0 <= v <= 1e12 for v in numbers) and facts.images > 0
        return facts if usable and len(facts.depths) <= 1000 and len(facts.curve) <= 1000 else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def read_advice(run: Run) -> list[dict[str, Any]]:
    """What each way was expected to bring and cost; they may come from anywhere."""
    try:
        advice = run.decisions.facts["advice"]
        found = []
        for number, way in enumerate([advice["chosen"], *advice["others"][:20]]):
            settings = ", ".join(f"{k} {v}" for k, v in way["settings"].items())
            figures = [float(way[n]) for n in ("accuracy", "low", "high")]
            found.append(
                {
                    "name": f"{way['strategy']} {settings}".strip(),
                    "chosen": number == 0,
                    "figures": figures,
                    "seconds": float(way["bill"]["seconds"]),
                    "reason": str(way["reason"]),
                }
            )
    except (KeyError, TypeError, ValueError, AttributeError):
        return []
    return found


def name_places(run: Run) -> list[str]:
    """Name what a run was trained on by its paths; [] for data in memory.

    Below the working folder without that: a page is sent to others, whom the writer's home does not concern.
    """
    data = run.data if isinstance(run.data, tuple) else (run.data,)
    here = Path(os.path.abspath("."))
    return [
        str(place.relative_to(here)) if place.is_relative_to(here) else str(place)
        for place in data
        if place is not None
    ]


def write_command(run: Run) -> str:
    """The command that repeats the run."""
    words = ["headstart", "fit", *name_places(run)]
    for name, entry in run.settings.items():
        value, field = entry["value"], FIELDS.get(name)
        if entry["origin"] != "user" or field is None or value is None:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words += [f"--{flag}"] if value else [f"--no-{flag}"] if field.info.default else []
        else:
            words += [f"--{flag}", str(value)]
    return shlex.join(words)
