"""Where the command `headstart` and `python -m headstart` begin.

It imports the command line once signals are caught: imports take a part of a second, and an interrupt in
them would end in a traceback.
"""

from typing import NoReturn

from headstart.errors import ResourceError
from headstart.process import catch_signals, leave

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line."""
    catch_signals()
    from headstart.cli.app import main

    try:
        main()
    except SystemExit as exc:
        if exc.code == ResourceError.exit_code:
            leave(ResourceError.exit_code)  # a thread that ran short of memory may never end
        raise


if __name__ == "__main__":
    main()
