"""Owns the entry point, also of `python -m parley`: what a signal means before anything that takes time is imported."""

from __future__ import annotations

import os
import signal
import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 if it failed, 2 if a setting or an option is wrong."""
    if (sys.argv[1:] if arguments is None else arguments) in ([], ["serve"]):
        # The imports take seconds. The first process of a container gets no signal that it has no handler for.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)
    from parley.commands import run  # noqa: PLC0415  # see above

    return run(arguments)


def _leave(*_: object) -> None:
    # There is nothing to clean up yet, and an exception could be lost: Python's import system has callbacks.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
