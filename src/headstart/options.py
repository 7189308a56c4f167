"""How a setting says what it is: beside its type, bounds and default, in the one place that declares it.

A field of a settings class is `Annotated[type, Field(bounds), Option(help, panel)] = default`. The command
line, the refusal of settings without effect, settings.json and the reference in the docs are made from it.
"""

import dataclasses

__all__ = ["Option"]


@dataclasses.dataclass(frozen=True)
class Option:
    """What people are told of a setting.

    Attributes:
        help: one sentence for `--help` and the reference; what a value does, not what it is called.
            The names that a value is one of stand in the place of "{choices}".
        panel: the heading under which it stands.
        common: whether `--help` shows it; `--help-all` shows every one.
        unit: of a number ("images", "seconds"), "" for none.
        flag: how the command line spells it, where that is not made of its name.
    """

    help: str
    panel: str
    common: bool = False
    unit: str = ""
    flag: str = ""
