"""The tree of exceptions: each class carries the exit code with which the command line ends.

A message says what was required, what was given and what
to do next, and names the element (the image, the row, the setting) on one line, whatever characters
the element's name has.
"""

__all__ = [
    "BadImageError",
    "EngineRefused",
    "HeadstartError",
    "InputError",
    "ResourceError",
    "TooManyBadImagesError",
    "TrainingError",
    "UsageError",
    "VerificationError",
    "csv_cell",
    "one_line",
    "printable",
]

MAX_MESSAGE = 2000  # characters; a name that a file gives may have any number


def printable(text: str) -> str:
    """Text from a file or a name as one line that cannot steer a terminal or reorder its words."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def csv_cell(text: str) -> str:
    """Write a cell that no spreadsheet takes for a formula, on one line of valid UTF-8."""
    text = printable(text)
    return "'" + text if text[:1] in tuple("=+-@") else text


def one_line(exc: BaseException) -> str:
    """Give the reason of a library's error as one line of bounded length."""
    return " ".join(str(exc).split())[:160] or type(exc).__name__


class HeadstartError(Exception):
    """Base of everything that headstart raises on purpose."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        text = printable(message)
        if len(text) > MAX_MESSAGE:
            text = f"{text[: MAX_MESSAGE // 2]} … {text[-MAX_MESSAGE // 2 :]}"
        super().__init__(text)


class UsageError(HeadstartError, ValueError):
    """A setting or argument is wrong: unknown name, value out of range, option without effect."""

    exit_code = 2


class EngineRefused(UsageError):
    """An engine cannot run a network, and another one may.

    Attributes:
        reason: why not, without what to do next.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; use --engine torch")
        self.reason = printable(reason)


class InputError(HeadstartError, ValueError):
    """A data set, manifest, weights file or run folder cannot be used as it is."""

    exit_code = 3


class BadImageError(InputError):
    """One image cannot be read; the message is the reason, without the image's name."""


class TooManyBadImagesError(InputError):
    """More images are unreadable than `max_bad` allows."""

    exit_code = 4


class TrainingError(InputError):
    """A training cannot continue: its loss is not finite."""


class ResourceError(HeadstartError, OSError):
    """Out of disk space, memory or permission."""

    exit_code = 5


class VerificationError(HeadstartError):
    """A check of headstart's own result failed, so the result is withheld."""

    exit_code = 6
