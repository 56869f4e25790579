"""Owns the command line: `parley` serves, `parley chat` talks to a Parley that serves."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from parley.settings import Settings, SettingsError, unknown_variables
from parley.telemetry.workers import counting_together

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONFIGURATION_ERROR: Final = 2
_OF_CHAT: Final = ("PARLEY_HOST", "PARLEY_PORT", "PARLEY_API_KEYS", "PARLEY_API_KEYS_FILE")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 where a chat failed, 2 where a setting or an option is wrong."""
    parser = argparse.ArgumentParser(prog="parley", description="A streaming chat API.")
    parser.add_argument("--version", action="version", version=version("parley"))
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("serve", help="serve (the default); settings are environment variables, see the README")
    chat = commands.add_parser("chat", help="talk to a Parley that serves")
    chat.add_argument("message", nargs="*", help="ask this and exit; without it, read standard input or converse")
    chat.add_argument("--url", help="where Parley serves; by default where PARLEY_HOST and PARLEY_PORT say")
    options = parser.parse_args(arguments)
    environment = dict(os.environ)
    if options.command == "chat":  # which needs no more than the address and a key
        environment = {name: environment.get(name, "") for name in _OF_CHAT}
    try:
        settings = Settings.from_environment(environment)
    except SettingsError as error:
        sys.stderr.write(f"parley: {error}\n".replace("\n", "\nparley: ").removesuffix("parley: "))
        return _CONFIGURATION_ERROR
    # Each command imports its own: the server's libraries take seconds that the client need not wait.
    if options.command == "chat":
        from parley import terminal  # noqa: PLC0415

        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        url = options.url or f"http://{host}:{settings.port}"
        return terminal.chat(url, next(iter(settings.keys()), None), " ".join(options.message))
    with counting_together() if settings.workers > 1 else nullcontext():
        from parley import server  # noqa: PLC0415

        server.serve(settings, unknown_variables(environment))
    return 0


if __name__ == "__main__":
    sys.exit(main())
