"""The help text of a setting, declared in one place with its type, bounds and default.

A field of a settings class is `Annotated[type, Field(bounds), Option(help, panel)] = default`. The command
line, the refusal of settings without effect, settings.json and the reference in the docs are made from it.
"""

import dataclasses

__all__ = ["Option"]


@dataclasses.dataclass(frozen=True)
class Option:
    """The help text of a setting, and how it is shown.

    Attributes:
        help: one sentence for `--help` and the reference that says what a value does; "{choices}" is
            replaced by the names that are allowed.
        panel: the heading under which it is listed.
        common: whether `--help` shows it; `--help-all` shows every setting.
        unit: of a number ("images", "seconds"), "" for none.
    """

    help: str
    panel: str
    common: bool = False
    unit: str = ""
