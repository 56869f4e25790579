"""The commands: `parley` serves, `parley chat` is a client, `parley health` checks, `parley eval` runs a suite."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from typing import Final

import msgspec

from parley.environment import SettingsError, load_env_file, settings_from, unknown_variables
from parley.telemetry.workers import choose_folder, counting

_CONFIGURATION_ERROR: Final = 2
_ADDRESS: Final = ("PARLEY_HOST", "PARLEY_PORT")
_KEYS: Final = ("PARLEY_API_KEYS", "PARLEY_API_KEYS_FILE")
_OF_CLIENTS: Final = {"chat": (*_ADDRESS, *_KEYS), "eval": _KEYS, "health": _ADDRESS}
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # all addresses include loopback
_HEALTH_TIMEOUT_S: Final = 4.0
_MOST_OF_ALL: Final = 1000


def run(arguments: Sequence[str] | None) -> int:
    """Run the command that the arguments name, and return its exit code."""
    parser = argparse.ArgumentParser(prog="parley", description="A streaming chat API.")
    parser.add_argument("--version", action="version", version=version("parley"))
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("serve", help="serve (the default); settings are environment variables, see the README")
    chat = commands.add_parser("chat", help="talk to a Parley that serves")
    chat.add_argument("message", nargs="*", help="ask this and exit; without it, read standard input or converse")
    chat.add_argument("--url", help="where Parley serves; by default where PARLEY_HOST and PARLEY_PORT say")
    health = commands.add_parser("health", help="exit with 0 if a Parley serves at PARLEY_HOST and PARLEY_PORT")
    health.add_argument("--ready", action="store_true", help="exit with 0 only if it would answer a chat")
    _add_evaluation(commands.add_parser("eval", help="ask a suite of questions, and say whether the answers got worse"))
    options = parser.parse_args(arguments)
    if options.command == "eval" and options.write_baseline and (options.tag or options.case):
        parser.error("--write-baseline needs the whole suite, without --tag and --case")
    try:
        if not getattr(options, "url", None):  # the keys in `.env` must not go to another Parley
            load_env_file()
        environment = dict(os.environ)
        starts = options.command == "eval" and not options.url
        if options.command in _OF_CLIENTS and not starts:  # ignore settings that only a server needs
            environment = {name: environment.get(name, "") for name in _OF_CLIENTS[options.command]}
        settings = settings_from(environment)
    except SettingsError as error:
        sys.stderr.write(f"parley: {error}\n".replace("\n", "\nparley: ").removesuffix("parley: "))
        return _CONFIGURATION_ERROR
    # Each command imports only what it needs: the server's libraries take seconds to import.
    reached = msgspec.structs.replace(settings, host=_LOOPBACK.get(settings.host, settings.host))
    if options.command == "health":
        return _health(reached.host, reached.port, "ready" if options.ready else "live")
    if options.command == "chat":
        from parley import terminal  # noqa: PLC0415

        return terminal.chat(options.url or reached.url, next(iter(settings.keys()), None), " ".join(options.message))
    if options.command == "eval":
        from parley.evaluation import command  # noqa: PLC0415

        return command.evaluate(options, next(iter(settings.keys()), None))
    choose_folder(settings.workers)
    from parley import server  # noqa: PLC0415

    if settings.workers == 1 or settings.agent is not None:
        server.import_app()
    for number in (signal.SIGTERM, signal.SIGINT):  # from here on, there is something to clean up
        signal.signal(number, _end)
    with counting():
        server.serve(settings, unknown_variables(environment))
    return 0


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("suite", help="a file of YAML: see docs/evaluation.md")
    add("--url", help="where Parley serves; by default, one is started with the current settings")
    add("--baseline", metavar="FILE", help="judge against these results; without it, each answer has to be right")
    add("--write-baseline", metavar="FILE", help="keep the results, for --baseline")
    add("--repeat", metavar="K", type=_count, default=1, help="ask each question K times (1)")
    add("--jobs", metavar="N", type=_count, default=2, help="ask N questions at once (2)")
    add("--tag", action="append", default=[], help="run the cases with this tag only; may be repeated")
    add("--case", metavar="ID", action="append", default=[], help="run this case only; may be repeated")
    add("--markdown", metavar="FILE", help="write the table as Markdown")
    add("--junit", metavar="FILE", help="write the results as JUnit XML")
    add("--jsonl", metavar="FILE", help="write a line of JSON for each answer, with its text")
    add("--show-text", action="store_true", help="show the answers in the terminal, and in Markdown and JUnit XML")


def _count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= _MOST_OF_ALL:
        raise argparse.ArgumentTypeError(f"must be from 1 to {_MOST_OF_ALL}")
    return count


def _end(*_: object) -> None:
    sys.exit(0)


def _health(host: str, port: int, question: str) -> int:
    """Request a health check from Parley, print the response, and return the exit code."""
    # Not httpx, which takes four times as long to import: this may run every few seconds.
    connection = HTTPConnection(host, port, timeout=_HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", f"/health/{question}")
        response = connection.getresponse()
        sys.stdout.write(f"{response.read().decode()}\n")
    except (OSError, HTTPException, UnicodeDecodeError) as error:
        sys.stderr.write(f"parley: no Parley answers at {host}, port {port} ({type(error).__name__}).\n")
        return 1
    finally:
        connection.close()
    return 0 if response.status == HTTPStatus.OK else 1
