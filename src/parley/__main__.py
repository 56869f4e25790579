"""The entry point, also of `python -m parley`; handles signals before the slow imports begin."""

from __future__ import annotations

import os
import signal
import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 if it failed, 2 if a setting or an option is wrong."""
    if (sys.argv[1:] if arguments is None else arguments) in ([], ["serve"]):
        # The imports take seconds. In a container, the first process (PID 1) ignores signals that have no handler.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)
    from parley.commands import run  # noqa: PLC0415  # the handlers must be set first

    return run(arguments)


def _leave(*_: object) -> None:
    # There is nothing to clean up yet, and a callback of Python's import system could swallow an exception.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
