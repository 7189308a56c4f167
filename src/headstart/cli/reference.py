"""Takes the settings and strategies, gives the page of the documentation that lists all settings.

`python -m headstart.cli.reference > docs/settings.md` writes it, and a test compares the page with it.
"""

import sys

from headstart.cli.options import default_of, flag_of, help_of
from headstart.training.settings import FIELDS, make_settings, say_wanted
from headstart.training.strategies.table import STRATEGIES

__all__ = ["write_reference"]

HEAD = """# Settings

Every setting of `headstart fit`, by the names that the command line, `headstart.fit` and settings.json share:
`--label-smoothing 0.1` is `label_smoothing=0.1`. A setting without effect on the chosen strategy is refused.
[strategies.md](strategies.md) says when to change which, and lists each strategy's own values.

This page is generated from the code: `python -m headstart.cli.reference > docs/settings.md`.
"""


def write_reference() -> str:
    """Write the page, as Markdown."""
    panels: dict[str, list[str]] = {}
    for name, setting in FIELDS.items():
        panels.setdefault(setting.option.panel, []).append(_write_row(name))
    parts = [HEAD]
    for panel, rows in panels.items():
        head = (
            "| option | what it does | takes | default | has an effect on |\n|---|---|---|---|---|"
        )
        parts.append(f"## {panel}\n\n{head}\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _write_row(name: str) -> str:
    setting = FIELDS[name]
    if setting.info.annotation is bool:
        takes, default = "", "yes" if setting.info.default else "no"
    else:
        unit = setting.option.unit
        takes = say_wanted(name) + (f" ({unit})" if unit else "")
        default = f"`{default_of(name)}`" if default_of(name) else ""
    users = [s.name for s in STRATEGIES.values() if name in s.uses]
    mlp = make_settings({"head": "1"})
    if any(name in s.uses_with(mlp) and name not in s.uses for s in STRATEGIES.values()):
        users.append("an MLP head on features")
    used = "all" if len(users) == len(STRATEGIES) else ", ".join(users)
    if setting.part == "recipe":
        default = "the strategy's own"
    flags = " / ".join(f"`{flag}`" for flag in flag_of(name).split("/"))
    return f"| {flags} | {help_of(name)} | {takes} | {default} | {used} |".replace("  ", " ")


if __name__ == "__main__":
    sys.stdout.write(write_reference())
