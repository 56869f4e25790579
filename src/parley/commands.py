"""The commands: `parley` serves, `chat` is a client, `health` checks, `eval` runs a suite, `faulty` is an upstream."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import msgspec

from parley.environment import SettingsError, load_env_file, settings_from, unknown_variables
from parley.telemetry.worker_metrics import choose_folder, counting

if TYPE_CHECKING:
    from parley.settings import Settings

_CONFIGURATION_ERROR: Final = 2
_ADDRESS: Final = ("PARLEY_HOST", "PARLEY_PORT")
_KEYS: Final = ("PARLEY_API_KEYS", "PARLEY_API_KEYS_FILE")
_CLIENT_VARIABLES: Final = {"chat": (*_ADDRESS, *_KEYS), "eval": _KEYS, "health": _ADDRESS}
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # all addresses include loopback
_HEALTH_TIMEOUT_S: Final = 4.0
_MAX_COUNT: Final = 1000
_MAX_PORT: Final = 65_535


def run(arguments: Sequence[str] | None) -> int:
    """Run the command that the arguments name, and return its exit code."""
    options = _parsed(arguments)
    package, extra = ("parley.testing", "testing") if options.command == "faulty" else ("litestar", "server")
    if find_spec(package) is None:
        sys.stderr.write(f"parley: packages are missing. Install them: pip install '/path/to/parley[{extra}]'\n")
        return _CONFIGURATION_ERROR
    if options.command == "faulty":
        return _simulate_faults(options.port)
    try:
        if not getattr(options, "url", None):  # the keys in `.env` must not go to another Parley
            load_env_file()
        environment = dict(os.environ)
        starts = options.command == "eval" and not options.url
        if options.command in _CLIENT_VARIABLES and not starts:  # ignore settings that only a server needs
            environment = {name: environment.get(name, "") for name in _CLIENT_VARIABLES[options.command]}
        settings = settings_from(environment)
    except SettingsError as error:
        sys.stderr.write(f"parley: {error}\n".replace("\n", "\nparley: ").removesuffix("parley: "))
        return _CONFIGURATION_ERROR
    if options.command in _CLIENT_VARIABLES:
        return _ask(options, settings)
    _serve(settings, unknown_variables(environment))
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="parley", description="A streaming chat API.")
    parser.add_argument("--version", action="version", version=version("parley"))
    commands = parser.add_subparsers(dest="command")
    faulty = commands.add_parser("faulty", help="run a fake upstream; the last word of a message names its fault")
    faulty.add_argument("--port", type=_port, default=9000, help="the port of 127.0.0.1 to serve on (9000)")
    commands.add_parser("serve", help="start Parley (the default); docs/configuration.md lists the settings")
    chat = commands.add_parser("chat", help="talk to a running Parley")
    chat.add_argument("message", nargs="*", help="ask this once; without it, converse, or read a message from a pipe")
    chat.add_argument("--url", help="the URL of Parley; by default, it is made of PARLEY_HOST and PARLEY_PORT")
    health = commands.add_parser(
        "health", help="check Parley at PARLEY_HOST and PARLEY_PORT: exit with 0 if it is alive"
    )
    health.add_argument("--ready", action="store_true", help="exit with 0 only if Parley is ready to answer")
    _add_evaluation(
        commands.add_parser("eval", help="ask a suite of questions, and report whether the answers got worse")
    )
    options = parser.parse_args(arguments)
    if options.command == "eval" and options.write_baseline and (options.tag or options.case):
        parser.error("--write-baseline needs the whole suite, without --tag and --case")
    return options


def _ask(options: argparse.Namespace, settings: Settings) -> int:
    """Run a command that is a client of Parley, and return its exit code."""
    reached = msgspec.structs.replace(settings, host=_LOOPBACK.get(settings.host, settings.host))
    key = next(iter(settings.keys()), None)
    if options.command == "health":
        return _health(reached.host, reached.port, "ready" if options.ready else "live")
    if options.command == "chat":
        from parley import terminal  # noqa: PLC0415  # each command imports only what it needs

        return terminal.chat(options.url or reached.url, key, " ".join(options.message))
    from parley.evaluation import command  # noqa: PLC0415

    return command.evaluate(options, key)


def _simulate_faults(port: int) -> int:
    from parley.testing import faulty  # noqa: PLC0415  # each command imports only what it needs

    try:
        faulty.serve(port)
    except OSError as error:
        sys.stderr.write(f"parley: cannot serve on port {port} ({error.strerror}).\n")
        return _CONFIGURATION_ERROR
    return 0


def _serve(settings: Settings, unknown: Iterable[tuple[str, str | None]]) -> None:
    choose_folder(settings.workers)
    from parley import server  # noqa: PLC0415  # each command imports only what it needs

    if settings.workers == 1 or settings.agent is not None:
        server.import_app()
    for number in (signal.SIGTERM, signal.SIGINT):  # from here on, there is something to clean up
        signal.signal(number, _end)
    with counting():
        server.serve(settings, unknown)


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("suite", help="the suite, a YAML file: see docs/evaluation.md")
    add("--url", help="the URL of Parley; by default, start one with the current settings")
    add(
        "--baseline",
        metavar="FILE",
        help="compare with these results; without it, each answer must be right and in time",
    )
    add("--write-baseline", metavar="FILE", help="write the results to a file for --baseline")
    add("--repeat", metavar="K", type=_count, default=1, help="ask each question K times (default: 1)")
    add("--jobs", metavar="N", type=_count, default=2, help="ask N questions at once (default: 2)")
    add("--tag", action="append", default=[], help="run only the cases with this tag; can be repeated")
    add("--case", metavar="ID", action="append", default=[], help="run only this case; can be repeated")
    add("--markdown", metavar="FILE", help="write the report as Markdown")
    add("--junit", metavar="FILE", help="write the report as JUnit XML")
    add("--jsonl", metavar="FILE", help="write one line of JSON per answer, with its text")
    add("--show-text", action="store_true", help="show the answers on the terminal, in Markdown and in JUnit XML")


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= _MAX_PORT:
        raise argparse.ArgumentTypeError(f"must be from 0 to {_MAX_PORT}")
    return port


def _count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= _MAX_COUNT:
        raise argparse.ArgumentTypeError(f"must be from 1 to {_MAX_COUNT}")
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
