"""Takes a regular expression and image ids, gives the group that each id names; refuses one for all.

Neither the expression nor the names can be trusted, so the search has a deadline, which the package
`regex` offers, with the notation of `re`.
"""

import time
from collections.abc import Sequence

import regex

from headstart.errors import UsageError

__all__ = ["NO_GROUPS", "capture_groups", "say_why_whole"]

# Says that images are independent, whatever their names suggest.
NO_GROUPS = "none"

# For all names together. A sensible pattern takes 0.2 s for 100,000 names; one that can match in
# exponentially many ways would never end.
GROUP_SECONDS = 10.0


def say_why_whole(groups: Sequence[str]) -> str:
    """Why none of these images can be held out, what they are in, if that is one group; else ""."""
    if len(groups) < 2 or not groups[0] or len(set(groups)) > 1:
        return ""
    return (
        f"puts all {len(groups)} images into one group, '{groups[0]}', so none could be held out; have "
        "it tell films, patients or objects apart"
    )


def capture_groups(pattern: str, ids: Sequence[str]) -> tuple[str, ...]:
    """Give the N texts that a regular expression captures in the ids, "" where it captures nothing.

    The text of several captures is joined by NUL, which no id has.

    Raises:
        UsageError: it is no regular expression with a capture, matches or captures nothing in any id,
            or takes too long.
    """
    try:
        searched = regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError, ValueError) as exc:
        raise UsageError(f"group '{pattern}' is not a regular expression: {exc}") from exc
    if searched.groups == 0:
        raise UsageError(f"group '{pattern}' captures nothing; put parentheses around the group")
    groups, matched = [], False
    end = time.monotonic() + GROUP_SECONDS
    for image_id in ids:
        try:
            match = searched.search(image_id, timeout=max(end - time.monotonic(), 1e-3))
        except TimeoutError as exc:
            raise UsageError(
                f"group '{pattern}' takes more than {GROUP_SECONDS:g} s to search in the names of the "
                f"images (at '{image_id}'); write it without repetitions inside repetitions"
            ) from exc
        texts = [text or "" for text in match.groups()] if match else []
        groups.append("\0".join(texts) if any(texts) else "")
        matched = matched or match is not None
    if not matched:
        raise UsageError(f"group '{pattern}' matches no image; the first is '{ids[0]}'")
    if not any(groups):
        raise UsageError(
            f"group '{pattern}' captures nothing of '{ids[0]}', nor of any other image; put the "
            "parentheses around what names the group"
        )
    return tuple(groups)
