"""Where the command `headstart` and `python -m headstart` begin.

It imports the command line once signals are caught: imports take a part of a second, and an interrupt in
them would end in a traceback.
"""

from typing import NoReturn

from headstart.process import catch_signals

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line."""
    catch_signals()
    from headstart.cli.app import main

    main()


if __name__ == "__main__":
    main()
