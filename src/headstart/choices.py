"""Takes a name to choose by, gives the choice; the error for an unknown name lists the known ones."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from headstart.errors import UsageError

__all__ = ["choose", "natural_key", "nearest"]

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """' (nearest: X)' for an error message, or '' when nothing is near."""
    lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(lower), n=1)
    return f" (nearest: {lower[close[0]]})" if close else ""


def choose(what: str, name: str, choices: Mapping[str, T]) -> T:
    """The named entry of a dict of choices.

    Raises:
        UsageError: names the keys and the nearest one.
    """
    if name not in choices:
        keys = ", ".join(choices)
        raise UsageError(f"{what} '{name}' is unknown{nearest(name, choices)}; known: {keys}")
    return choices[name]


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts 1, 2, 10 as people do; ties end on the text itself."""
    parts = re.split(r"([0-9]+)", name)
    numbered = tuple(
        (0, len(p.lstrip("0")), p.lstrip("0")) if p.isdecimal() else (1, 0, p.casefold())
        for p in parts
        if p
    )
    return (*numbered, (2, 0, name))
