"""Takes the settings, strategies and commands, gives the pages of the documentation that list them all.

`python -m headstart.cli.reference commands > docs/commands.md` writes one, and a test compares the pages with
what the code says. Without a name it is the page of settings.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, get_args

import typer
from rich.text import Text

from headstart.cli.app import app
from headstart.cli.options import default_of, flag_of, help_of
from headstart.training.settings import FIELDS, make_settings, say_wanted
from headstart.training.strategies.table import STRATEGIES

__all__ = ["PAGES", "write_commands", "write_settings"]

SETTINGS_HEAD = """# Settings

Every setting of `headstart fit`, by the names that the command line, `headstart.fit` and settings.json share:
`--label-smoothing 0.1` is `label_smoothing=0.1`. A setting without effect on the chosen strategy is refused.
[Strategies](strategies.md) says when to change which, and lists each strategy's own values.

This page is generated from the code: `python -m headstart.cli.reference > docs/settings.md`.
"""

COMMANDS_HEAD = """# Commands

Every command with all its options; `headstart COMMAND --help-all` prints the same, and `python -m headstart`
is `headstart`. [Settings](settings.md) has those of `fit` once more, each with its default and the strategies
that it has an effect on; [what is written](outputs.md) has the exit codes, and the objects of `--json`.

This page is generated from the code: `python -m headstart.cli.reference commands > docs/commands.md`.
"""

# What an option takes, by the type of its value.
KINDS = {int: "a whole number", float: "a number", str: "text", bool: ""}
OWN = "Options"


def write_settings() -> str:
    """Write the page of all settings, as Markdown."""
    panels: dict[str, list[str]] = {}
    for name, setting in FIELDS.items():
        panels.setdefault(setting.option.panel, []).append(_write_setting(name))
    head = "| option | what it does | takes | default | has an effect on |\n|---|---|---|---|---|"
    parts = [f"## {panel}\n\n{head}\n" + "\n".join(rows) + "\n" for panel, rows in panels.items()]
    return "\n".join([SETTINGS_HEAD, *parts])


def _write_setting(name: str) -> str:
    setting = FIELDS[name]
    if setting.info.annotation is bool:
        default = "yes" if setting.info.default else "no"
    else:
        default = f"`{default_of(name)}`" if default_of(name) else ""
    users = [s.name for s in STRATEGIES.values() if name in s.uses]
    mlp = make_settings({"head": "1"})
    if any(name in s.uses_with(mlp) and name not in s.uses for s in STRATEGIES.values()):
        users.append("an MLP head on features")
    used = "all" if len(users) == len(STRATEGIES) else ", ".join(users)
    if setting.part == "recipe":
        default = "the strategy's own"
    flags = _join_flags(flag_of(name).split("/"))
    return _write_row(flags, _mark(help_of(name)), _say_taken(name), default, used)


def write_commands() -> str:
    """Write the page of all commands, as Markdown."""
    return "\n".join([COMMANDS_HEAD, *_write_group(typer.main.get_command(app), "headstart", "##")])


def _write_group(group: Any, words: str, level: str) -> Iterator[str]:
    for name, command in sorted(group.commands.items()):
        yield _write_command(command, f"{words} {name}", level)
        if hasattr(command, "commands"):
            yield from _write_group(command, f"{words} {name}", level + "#")


def _write_command(command: Any, words: str, level: str) -> str:
    """Write what `--help-all` says of a command, with a table of options for each of its panels."""
    text, _, examples = (command.help or "").partition("[bold]Examples[/bold]")
    parts = [f"{level} {words}\n"]
    if getattr(command, "commands", None) is None:
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        names = [_name_argument(p) for p in arguments]
        parts.append("    " + " ".join([words, *names, "[OPTIONS]"]) + "\n")
        parts.append(_mark(text).strip() + "\n")
        if arguments:
            rows = [_write_row(f"`{_name_argument(p)}`", _describe(p)) for p in arguments]
            parts.append("\n".join(["| argument | what it is |", "|---|---|", *rows, ""]))
    else:
        parts.append(_mark(text).strip() + "\n")
    if examples.strip():
        lines = [line.strip() for line in _strip(examples).splitlines() if line.strip()]
        parts += ["For example:\n", "```text\n" + "\n".join(lines) + "\n```\n"]
    return "\n".join([*parts, *_write_options(command)])


def _write_options(command: Any) -> Iterator[str]:
    panels: dict[str, list[str]] = {OWN: []}
    for option in command.params:
        if option.param_type_name == "option":
            takes = _say_taken(option.name) if option.name in FIELDS else _say_kind(option)
            flags = _join_flags([*option.opts, *option.secondary_opts])
            row = _write_row(flags, _describe(option), takes)
            panels.setdefault(option.rich_help_panel or OWN, []).append(row)
    for panel, rows in panels.items():
        if rows:
            yield "\n".join([f"| {panel} | what it does | takes |", "|---|---|---|", *rows, ""])


def _name_argument(argument: Any) -> str:
    name = argument.metavar or argument.name.upper().replace("_", "-")
    name += " …" if argument.nargs == -1 and "…" not in name else ""
    return name if argument.required else f"[{name}]"


def _describe(parameter: Any) -> str:
    """What an option or an argument is for, its default included."""
    text = parameter.help or ""
    if parameter.name in FIELDS:
        return _mark(text.replace(FIELDS[parameter.name].option.help, help_of(parameter.name)))
    if parameter.show_default and parameter.default not in (None, False, "", [], ()):
        text += f" Default: {parameter.default}."
    return _mark(text)


def _say_taken(name: str) -> str:
    setting = FIELDS[name]
    if bool in (setting.info.annotation, *get_args(setting.info.annotation)):
        return ""
    return say_wanted(name) + (f" ({setting.option.unit})" if setting.option.unit else "")


def _say_kind(option: Any) -> str:
    annotation = option.type_descriptor.annotation
    kinds = [k for k in (annotation, *get_args(annotation)) if k in KINDS]
    told = KINDS[kinds[0]] if kinds else "text"
    return told + (", repeatable" if option.multiple else "")


def _join_flags(flags: Iterable[str]) -> str:
    return " / ".join(f"`{flag}`" for flag in flags)


def _write_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def _strip(text: str) -> str:
    """Text of a help page without rich's marks."""
    return Text.from_markup(text.replace("\b", "")).plain


def _mark(text: str) -> str:
    """Text of a help page as Markdown: options, and what stands in single quotes, are code."""
    text = re.sub(r"(?<!\w)'([^'\n]+)'(?!\w)", r"`\1`", _strip(text))
    return re.sub(r"(?<![\w`-])(--[a-z][\w-]*)", r"`\1`", text)


PAGES: dict[str, Callable[[], str]] = {"settings": write_settings, "commands": write_commands}

if __name__ == "__main__":
    sys.stdout.write(PAGES[sys.argv[1] if len(sys.argv) > 1 else "settings"]())
