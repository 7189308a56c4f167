"""The command line: the program with all its commands, and the translation of errors to exit codes.

Nothing here imports torch before a command needs it.
"""

import sys
from typing import Annotated, NoReturn

import typer
from rich.text import Text

import headstart
from headstart.cli.commands import (
    advise_command,
    audit_command,
    demo_command,
    evaluate_command,
    fit_command,
    predict_command,
)
from headstart.cli.comparing import compare_command
from headstart.cli.extraction import extract_command
from headstart.cli.listings import (
    backbones_command,
    cache_app,
    download_command,
    layers_command,
)
from headstart.cli.options import SettingsCommand
from headstart.cli.reporting import report_command
from headstart.cli.terminal import State, err, out
from headstart.errors import HeadstartError, printable
from headstart.process import find_shortage, give_up_output, run_process

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Train an image classifier from a folder of labelled images, by transfer learning.

A network trained on ImageNet is run once over your images; a new classifier is trained on its features, \
measured with 95 % intervals, and saved as a folder that timm loads too.

[bold]Start here[/bold]

headstart demo                             [dim]the whole path on real images[/dim]

headstart fit photos -o run                [dim]photos/ants/*.jpg, photos/bees/…[/dim]

headstart evaluate run other-photos        [dim]accuracy with its interval[/dim]

headstart predict run new/*.jpg            [dim]what is in these?[/dim]
""",
)


for _name, _command in {
    "advise": advise_command,
    "audit": audit_command,
    "fit": fit_command,
    "evaluate": evaluate_command,
    "report": report_command,
    "compare": compare_command,
    "predict": predict_command,
    "extract": extract_command,
    "backbones": backbones_command,
    "layers": layers_command,
    "download": download_command,
    "demo": demo_command,
}.items():
    app.command(name=_name, cls=SettingsCommand)(_command)
app.add_typer(cache_app, name="cache")


def main() -> NoReturn:
    """Run a command and end with the exit code that docs/outputs.md lists for its outcome."""
    run_process(_run)


def _run() -> int:
    try:
        # Not app(): typer turns an interruption and a broken pipe into codes of its own.
        command = typer.main.get_command(app)
        try:
            with command.make_context("headstart", sys.argv[1:] or ["--help"]) as context:
                command.invoke(context)
        finally:
            sys.stdout.flush()  # what cannot be written must not come out at exit
    except typer.TyperException as exc:
        hint = f"; see headstart {_command_given()}--help"
        return _fail(exc.exit_code, printable(exc.format_message().rstrip(".")) + hint)
    except typer.Exit as exc:
        return exc.exit_code
    except HeadstartError as exc:
        return _fail(exc.exit_code, str(exc))
    except BrokenPipeError:
        raise
    except Exception as exc:
        if shortage := find_shortage(exc):
            return _fail(5, shortage)
        if not isinstance(exc, OSError):
            raise
        give_up_output()
        what = f"{exc.filename}: " if exc.filename else "output: "
        return _fail(5, printable(f"{what}{exc.strerror or exc}"))
    return 0


def _fail(code: int, message: str) -> int:
    """Print the reason on one line; with --verbose, also the traceback of the error being handled."""
    if State.verbose:
        err.print_exception()
    err.print(Text.assemble(("error: ", "bold red"), message))
    return code


def _command_given() -> str:
    level, found = app, ""
    for word in sys.argv[1:]:
        if word in {command.name for command in level.registered_commands}:
            return f"{found}{word} "
        for group in level.registered_groups:
            if word == group.name and group.typer_instance is not None:
                level, found = group.typer_instance, f"{word} "
    return found


def _show_version(value: bool) -> None:
    if value:
        out.print(f"headstart {headstart.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options of the program itself."""
