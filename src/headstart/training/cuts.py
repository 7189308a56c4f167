"""The notation of the setting `cut` for several cut points: "a,b" side by side, "a+b" the mean of two."""

from collections.abc import Sequence

__all__ = ["Heads", "name_cuts", "read_cuts"]

# Of each head whose mean is taken, the names of the cut points that it reads side by side.
Heads = tuple[tuple[str, ...], ...]


def name_cuts(heads: Sequence[tuple[str, ...]]) -> str:
    """Give the notation of heads."""
    return "+".join(",".join(cuts) for cuts in heads)


def read_cuts(notation: str) -> Heads:
    """Give the heads of a notation, the names as they are written."""
    return tuple(tuple(name.strip() for name in cuts.split(",")) for cuts in notation.split("+"))
