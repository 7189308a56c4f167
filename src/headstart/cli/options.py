"""Options of the commands, made from the settings, each of which says what it is where it is declared.

Also the options that are no settings and that many commands have.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand

from headstart.cli.terminal import State
from headstart.errors import UsageError
from headstart.process import check_address_space
from headstart.training.settings import FIELDS, make_settings

__all__ = [
    "SettingsCommand",
    "default_of",
    "flag_of",
    "help_of",
    "takes",
]

# What a command may let people say of its output; `State` knows what they said.
TALKS = {
    "json": typer.Option("--json", help="Print JSON for programs, one object a line."),
    "quiet": typer.Option("--quiet", "-q", help="Print errors and results, and nothing else."),
    "verbose": typer.Option(
        "--verbose", "-v", help="Also show settings, and tracebacks of errors."
    ),
}

# Where a help text has the names that a setting is one of.
CHOICES = "{choices}"
# So many settings of a command are no burden.
FEW = 3

Command = Callable[..., None]


def takes(
    names: Iterable[str] = (), *, talks: Iterable[str] = (), **defaults: str
) -> Callable[[Command], Command]:
    """A decorator: the command has an option for each of these settings, and of these for its output.

    It gets the settings that were given, by their names, as keyword arguments; so a run can tell them
    from defaults. Of many, `--help` shows those that are common, and `--help-all` every one. What was
    said of the output is in `State` by then.

    Args:
        names: of `FIELDS`; those that the command has as parameters of its own need a default there.
        talks: of `TALKS`.
        defaults: {name: what the command takes where nothing is given} where that is not the setting's.
    """
    names, talks = tuple(names), tuple(talks)

    def decorate(command: Command) -> Command:
        own = [
            parameter
            for parameter in inspect.signature(command).parameters.values()
            if parameter.kind is not parameter.VAR_KEYWORD and parameter.name not in names
        ]
        common = [_make_switch(talk, TALKS[talk]) for talk in talks]
        few = len(names) <= FEW
        made = [
            _make_parameter(n, defaults.get(n, default_of(n)), shown=few or FIELDS[n].option.common)
            for n in names
        ]
        if not few:
            made.append(_make_switch(HELP_ALL, _HELP_ALL))

        @functools.wraps(command)
        def call(**values: Any) -> None:
            values.pop(HELP_ALL, None)
            _begin(**{talk: values.pop(talk) for talk in talks})
            options = {n: v for n in names if (v := values.pop(n)) is not None}
            for name in filter(_is_number_or_text, options):
                options[name] = _read_number(options[name])
            make_settings(options)  # refuses what is out of range
            command(**values, **options)

        parameters = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *common, *made)
        ]
        vars(call)["__signature__"] = inspect.Signature(parameters)
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        return call

    return decorate


def flag_of(name: str) -> str:
    """How the command line spells a setting."""
    setting = FIELDS[name]
    flag = "--" + name.replace("_", "-")
    is_open = bool in get_args(setting.info.annotation)  # neither yes nor no by default
    if is_open or (setting.info.annotation is bool and setting.info.default):
        return f"{flag}/--no-{flag.removeprefix('--')}"
    return flag


def help_of(name: str) -> str:
    """What a setting does, with the names that it is one of."""
    return _fill_in(name, FIELDS[name].option.help)


def _fill_in(name: str, text: str) -> str:
    if CHOICES not in text:
        return text
    from headstart.data.views import AUGMENTATIONS
    from headstart.training.strategies.table import STRATEGIES

    tables: dict[str, Iterable[str]] = {"strategy": STRATEGIES, "augment": AUGMENTATIONS}
    *others, last = tables.get(name) or get_args(FIELDS[name].info.annotation)
    return text.replace(CHOICES, f"{', '.join(others)} or {last}")


class SettingsCommand(TyperCommand):
    """A command of `takes`: what its help says of settings and switches is made once it is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for parameter in self.get_params(ctx):
            told = vars(parameter)
            if parameter.name in FIELDS:
                told["help"] = _fill_in(parameter.name, told["help"])
            if told.get("is_bool_flag"):
                told["metavar"] = ""  # a switch takes no value
        super().format_help(ctx, formatter)


def default_of(name: str) -> str:
    """What a setting is where nobody sets it; "" where that is the strategy's, the data's or none."""
    setting = FIELDS[name]
    value = setting.info.default
    if setting.part == "recipe" or value is None or isinstance(value, bool):
        return ""
    return str(value)


def _begin(*, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
    """Keep what was said of the output, and see that the libraries can be loaded."""
    if quiet and verbose:
        raise UsageError("--quiet and --verbose are both given; choose one")
    State.json, State.quiet, State.verbose = json, quiet, verbose
    check_address_space()


def _make_switch(name: str, declared: Any) -> inspect.Parameter:
    annotation = Annotated[bool, declared]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation
    )


def _make_parameter(name: str, default: str, *, shown: bool) -> inspect.Parameter:
    """None stands for what was not given; `make_settings` looks at bounds."""
    setting = FIELDS[name]
    kinds = get_args(setting.info.annotation)
    # Whether a text is one of the names that are known is told by `make_settings`.
    kind = str if str in map(type, kinds) or str in kinds else setting.info.annotation
    told = setting.option.unit or ("name" if CHOICES in setting.option.help else "")
    declared = typer.Option(
        flag_of(name),
        help=setting.option.help + (f" Default: {default}." if default else ""),
        rich_help_panel=setting.option.panel,
        hidden=not shown,
        show_default=False,
        metavar=f"<{told}>" if told else None,
    )
    # The checker wants a type that is written down, and this one is read off the setting.
    annotation = Annotated[kind | None, declared]  # type: ignore[valid-type]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _is_number_or_text(name: str) -> bool:
    return {float, str} <= set(get_args(FIELDS[name].info.annotation))


def _read_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _show_all(context: typer.Context, value: bool) -> None:
    if value:
        for parameter in context.command.params:
            vars(parameter)["hidden"] = False
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit


HELP_ALL = "help_all"
_HELP_ALL = typer.Option(
    "--help-all", callback=_show_all, is_eager=True, help="Show every option and exit."
)
