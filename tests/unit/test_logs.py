"""Logs: one JSON line an event, whoever logs it, with no secret and no text of others."""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from parley.settings import Settings
from parley.telemetry import logs as telemetry
from tests.support.canaries import CANARY, CANARY_KEY
from tests.support.logs import Logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONG_HEX = "0123456789abcdef" * 4


@pytest.fixture
def output() -> Logs:
    """What is written; it may hold no canary, but that is for each test to say."""
    return Logs()


@pytest.fixture
def configure(output: Logs) -> Iterator[Callable[..., None]]:
    """Configure the logs, and take them back at the end."""
    root = logging.getLogger()
    handlers = root.handlers

    def configure(**changes: Any) -> None:
        with redirect_stdout(output):
            telemetry.configure(Settings(**{"log_format": "json", "log_level": "debug", **changes}))

    yield configure
    root.handlers = handlers
    logging.captureWarnings(capture=False)


@pytest.mark.parametrize(
    "fields",
    [
        {"api_key": CANARY_KEY},
        {"OPENAI_API_KEY": CANARY},
        {"Authorization": f"Basic {CANARY}"},
        {"cookie": CANARY},
        {"password": CANARY},
        {"client_secret": CANARY},
        {"private_key": CANARY},
        {"db_pwd": CANARY},
        {"passphrase": CANARY},
        {"headers": {"key": CANARY}},
        {"access_token": CANARY},
        {"headers": {"authorization": CANARY, "x-api-key": CANARY}},
        {"headers": [{"authorization": CANARY}]},
        {"note": f"sent {CANARY_KEY}, refused"},
        {"note": f"Authorization: Bearer {CANARY}"},
        {"note": f"bearer {CANARY}"},
        {"note": f"authorization=Basic {CANARY}"},
        {"note": f'"api_key": "{CANARY}"'},
        {"note": f"token={CANARY}"},
        {"note": f"passphrase={CANARY}"},
        {"note": f'Authorization: Digest username="x", response="{CANARY}"'},
        {"note": f"http://user:{CANARY}@example.com/"},
        {"notes": ["fine", f"sk-{CANARY}"]},
        {"error": ValueError(f"secret: {CANARY}")},
    ],
)
def test_a_secret_is_hidden_by_its_name_and_by_its_looks(
    configure: Callable[..., None], output: Logs, fields: dict[str, Any]
) -> None:
    """Wherever it stands in the line."""
    configure()
    structlog.stdlib.get_logger("parley.test").info("something", kept="kept", **fields)
    (line,) = output.lines("something")
    assert "***" in json.dumps(line)
    assert CANARY not in output.getvalue()
    assert CANARY_KEY not in output.getvalue()
    assert line["kept"] == "kept"


@pytest.mark.parametrize("prefix", ["api_key=", "api-key: ", "api_key is ", "secret ", "'token': '"])
def test_long_hex_beside_a_secrets_name_is_hidden(configure: Callable[..., None], output: Logs, prefix: str) -> None:
    """Alone it may be a correlation id."""
    configure()
    structlog.stdlib.get_logger("parley.test").info("something", note=f"{prefix}{LONG_HEX}", id=LONG_HEX)
    (line,) = output.lines("something")
    assert LONG_HEX not in line["note"]
    assert line["id"] == LONG_HEX


def test_what_is_no_secret_is_kept(configure: Callable[..., None], output: Logs) -> None:
    """The fields of the request line above all."""
    configure()
    fields = {"input_tokens": 7, "first_token_ms": 3, "chunks": 4, "model": "m", "none": None, "token": None}
    structlog.stdlib.get_logger("parley.test").info("something", **fields)
    (line,) = output.lines("something")
    assert {name: line[name] for name in fields} == fields


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_exceptions_words_and_locals_stay_inside(
    configure: Callable[..., None], output: Logs, log_format: str
) -> None:
    """They may quote a prompt; its type, its causes and the places tell enough."""
    configure(log_format=log_format)
    prompt = CANARY

    def fail() -> None:
        try:
            dict[str, str]()[prompt]
        except KeyError as error:
            raise RuntimeError(f"about {prompt}") from error

    try:
        fail()
    except RuntimeError:
        structlog.stdlib.get_logger("parley.test").exception("it_failed")
        logging.getLogger("parley.test").exception("it_failed_too")
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
    text = output.getvalue()
    assert CANARY not in text
    assert text.count("builtins.RuntimeError") == text.count("builtins.KeyError") == 3
    assert text.count("test_logs.py") >= 3


def test_a_librarys_message_is_withheld(configure: Callable[..., None], output: Logs) -> None:
    """Who says something and where is logged from warning upwards; what, nobody can vouch for."""
    configure()
    for name in ("openai", "openai.agents", "httpx2", "httpcore2.connection", "asyncio", "somebody.else"):
        logger = logging.getLogger(name)
        logger.debug("Request options: %s", CANARY)
        logger.info("Sent %s", CANARY)
        logger.warning("Got %s", CANARY)
        logger.error(f"Got {CANARY}")  # noqa: G004  # as libraries do
    lines = output.lines("library_message")
    assert [line["level"] for line in lines] == ["warning", "error"] * 6
    assert lines[0]["logger"] == "openai"
    assert lines[0]["location"].startswith("test_logs:")
    assert CANARY not in output.getvalue()


def test_a_warning_is_a_line_too(configure: Callable[..., None], output: Logs) -> None:
    """Also Python's own."""
    configure()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn(CANARY, stacklevel=1)
    (line,) = output.lines("library_message")
    assert line["logger"] == "py.warnings"


def test_the_level_is_that_of_the_settings(configure: Callable[..., None], output: Logs) -> None:
    """For structlog and the standard library alike."""
    configure(log_level="warning")
    structlog.stdlib.get_logger("parley.test").info("low")
    logging.getLogger("parley.test").info("low")
    logging.getLogger("uvicorn.error").info("low")
    structlog.stdlib.get_logger("parley.test").warning("high")
    assert output.lines("low") == []
    assert len(output.lines("high")) == 1


def test_the_format_is_json_where_the_output_is_no_terminal(configure: Callable[..., None], output: Logs) -> None:
    """A terminal's reader gets something readable."""
    configure(log_format="auto")
    structlog.stdlib.get_logger("parley.test").info("something", number=1)
    assert output.lines("something")[0]["number"] == 1
    configure(log_format="console")
    structlog.stdlib.get_logger("parley.test").info("something else", number=1)
    last = output.getvalue().splitlines()[-1]
    assert "something else" in last
    assert not last.startswith("{")


def test_configuring_twice_does_not_log_twice(configure: Callable[..., None], output: Logs) -> None:
    """Tests and reloaders make several apps in a process."""
    configure()
    configure()
    structlog.stdlib.get_logger("parley.test").info("something")
    assert len(output.lines("something")) == 1
