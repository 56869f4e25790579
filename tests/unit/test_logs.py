"""Logs: one JSON line per event, from Parley or a library, without secrets and without callers' or upstreams' text."""

from __future__ import annotations

import json
import logging
import re
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.canaries import CANARY, CANARY_KEY
from tests.support.logs import COLOUR

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.logs import Logs

LONG_HEX = "0123456789abcdef" * 4
FORMATS = pytest.mark.parametrize("log_format", ["json", "console"])

for_anything = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Mute:
    """An object whose representation raises an error."""

    def __repr__(self) -> str:
        raise RuntimeError(CANARY)


names = st.text(max_size=9)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for these values, or containers of them at any depth."""
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, min_size=1, max_size=3)
            | st.tuples(names | st.binary(max_size=9), inner)
            | st.dictionaries(names, inner, min_size=1, max_size=3)
        ),
    )


secret_words = st.text("abcXYZ019_-", min_size=20, max_size=40)
under_a_secrets_name = st.builds(
    lambda name, held, make: make(name, held),
    st.sampled_from(["api_key", "Authorization", "x-api-key", "Set-Cookie", "password", "token", "client_secret"]),
    nested(st.just(CANARY)),
    st.sampled_from(
        [
            lambda name, held: {name: held},
            lambda name, held: {"kept": 1, name: held},
            lambda name, held: {name.encode(): held},
            lambda name, held: (name, held),
            lambda name, held: [name.encode(), held],
        ]
    ),
)
hashable = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.tuples(st.integers(), st.text())
odd = st.recursive(
    hashable
    | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"]))
    | st.floats()
    | st.integers(min_value=10**18)
    | st.builds(pow, st.just(10), st.just(5000))
    | st.builds(ValueError, st.text())
    | st.builds(Mute)
    | st.sets(hashable)
    | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(hashable, inner),
)


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
        {"headers": [("authorization", CANARY), (b"x-api-key", CANARY.encode())]},
        {"headers": {b"cookie": CANARY.encode()}},
        {"note": f"Cookie: a=b; session={CANARY}"},
        {"note": f"password=p@ss!{CANARY}"},
        {"keys": {f"sk-{CANARY}": "fine"}},
        {"keys": {f"sk-{CANARY}", 1}},
    ],
)
def test_a_secret_is_hidden_by_its_name_and_by_its_looks(
    configure: Callable[..., None], output: Logs, fields: dict[str, Any]
) -> None:
    """The secret may be anywhere in the line."""
    configure()
    structlog.stdlib.get_logger("parley.test").info("something", kept="kept", **fields)
    (line,) = output.lines("something")
    assert "***" in json.dumps(line)
    assert CANARY not in output.getvalue()
    assert CANARY_KEY not in output.getvalue()
    assert line["kept"] == "kept"


@pytest.mark.parametrize("prefix", ["api_key=", "api-key: ", "api_key is ", "secret ", "'token': '"])
def test_long_hex_beside_a_secrets_name_is_hidden(configure: Callable[..., None], output: Logs, prefix: str) -> None:
    """Without such a name, the hexadecimal text may be a correlation ID and is kept."""
    configure()
    structlog.stdlib.get_logger("parley.test").info("something", note=f"{prefix}{LONG_HEX}", id=LONG_HEX)
    (line,) = output.lines("something")
    assert LONG_HEX not in line["note"]
    assert line["id"] == LONG_HEX


def test_what_is_no_secret_is_kept(configure: Callable[..., None], output: Logs) -> None:
    """The fields of the request line matter most."""
    configure()
    fields = {"input_tokens": 7, "first_token_ms": 3, "chunks": 4, "model": "m", "none": None, "token": None}
    structlog.stdlib.get_logger("parley.test").info("something", **fields)
    (line,) = output.lines("something")
    assert {name: line[name] for name in fields} == fields


@FORMATS
def test_an_exceptions_words_and_locals_stay_inside(
    configure: Callable[..., None], output: Logs, log_format: str
) -> None:
    """Both may quote a prompt; the type, the causes and the code locations are logged."""
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
    """From warning level upwards, the logger and the location are logged, but not the text, which may hold a secret."""
    configure()
    for name in ("openai", "openai.agents", "httpx2", "httpcore2.connection", "asyncio", "somebody.else"):
        logger = logging.getLogger(name)
        logger.debug("Request options: %s", CANARY)
        logger.info("Sent %s", CANARY)
        logger.warning("Got %s", CANARY)
        logger.error(f"Got {CANARY}")  # noqa: G004  # libraries do this
    lines = output.lines("library_message")
    assert [line["level"] for line in lines] == ["warning", "error"] * 6
    assert lines[0]["logger"] == "openai"
    assert lines[0]["location"].startswith("test_logs:")
    assert CANARY not in output.getvalue()


def test_a_warning_is_a_line_too(configure: Callable[..., None], output: Logs) -> None:
    """Python's own warnings are logged like a library's messages."""
    logging.captureWarnings(capture=False)  # pytest has restored `showwarning`; logging does not know
    configure()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn(CANARY, stacklevel=1)
    (line,) = output.lines("library_message")
    assert line["logger"] == "py.warnings"


def test_the_level_is_that_of_the_settings(configure: Callable[..., None], output: Logs) -> None:
    """The level applies to structlog and to the standard library."""
    configure(log_level="warning")
    structlog.stdlib.get_logger("parley.test").info("low")
    logging.getLogger("parley.test").info("low")
    logging.getLogger("uvicorn.error").info("low")
    structlog.stdlib.get_logger("parley.test").warning("high")
    assert output.lines("low") == []
    assert len(output.lines("high")) == 1


def test_the_format_is_json_where_the_output_is_no_terminal(configure: Callable[..., None], output: Logs) -> None:
    """The console format is for people who read the logs at a terminal."""
    configure(log_format="auto")
    structlog.stdlib.get_logger("parley.test").info("something", number=1)
    assert output.lines("something")[0]["number"] == 1
    configure(log_format="console")
    structlog.stdlib.get_logger("parley.test").info("something else", number=1, nothing=None)
    last = output.getvalue().splitlines()[-1]
    assert re.fullmatch(r"\d\d:\d\d:\d\d \[info     \] something else number=1", last)


def test_configuring_twice_does_not_log_twice(configure: Callable[..., None], output: Logs) -> None:
    """Tests and reloaders create several apps in one process."""
    configure()
    configure()
    structlog.stdlib.get_logger("parley.test").info("something")
    assert len(output.lines("something")) == 1


@for_anything
@given(value=nested(under_a_secrets_name))
def test_what_stands_under_a_secrets_name_is_hidden(
    configure: Callable[..., None], output: Logs, value: object
) -> None:
    """The value is hidden at any depth, in any container, whatever its type."""
    configure()
    structlog.stdlib.get_logger("parley.test").info("something", value=value)
    assert CANARY not in output.getvalue()


@for_anything
@given(
    data=st.data(),
    secret=secret_words,
    look=st.sampled_from(
        ["Bearer {}", "sk-{}", "api_key={}", "'password': '{}'", "token is {}", "http://user:{}@host"]
    ),
)
def test_what_looks_like_a_secret_is_hidden(
    configure: Callable[..., None], output: Logs, data: st.DataObject, secret: str, look: str
) -> None:
    """The secret is hidden at any depth and in the middle of other words."""
    words = st.text("abc \n", max_size=9)
    text = f"{data.draw(words)} {look.format(secret)} {data.draw(words)}"
    configure()
    structlog.stdlib.get_logger("parley.test").info("something", value=data.draw(nested(st.just(text))))
    assert secret not in output.getvalue()


@pytest.mark.long
@FORMATS
@for_anything
@given(event=st.text(), fields=st.dictionaries(st.text(), odd))
def test_whatever_is_logged_becomes_one_line_of_printable_text(
    configure: Callable[..., None],
    output: Logs,
    capfd: pytest.CaptureFixture[str],
    log_format: str,
    event: str,
    fields: Any,
) -> None:
    """No text can forge a line or control the terminal, and no error loses the line."""
    before = len(output.getvalue())
    configure(log_format=log_format)
    structlog.stdlib.get_logger("parley.test").info(event, **{f"{name}_": value for name, value in fields.items()})
    *lines, last = output.getvalue()[before:].split("\n")
    assert (len(lines), last) == (1, "")
    assert COLOUR.sub("", lines[0]).isprintable()
    assert "unloggable" not in lines[0]
    assert capfd.readouterr() == ("", "")
    if log_format == "json":
        json.loads(lines[0])


@for_anything
@given(
    numbers=st.dictionaries(
        st.sampled_from(
            ["input_tokens", "output_tokens", "max_output_tokens", "total_tokens", "first_token_ms", "chunks"]
        ),
        st.none() | st.integers(0, 2**64 - 1) | st.booleans(),
    ),
    words=st.dictionaries(
        st.sampled_from(["model", "route", "outcome", "correlation_id"]), st.text("aZ09._-/", max_size=99)
    ),
)
def test_what_is_harmless_stays_as_it_is(
    configure: Callable[..., None], output: Logs, numbers: dict[str, Any], words: dict[str, Any]
) -> None:
    """Token counts matter most."""
    configure()
    structlog.stdlib.get_logger("parley.test").info("something", **numbers, **words, all=[{**numbers, **words}])
    line = output.lines("something")[-1]
    assert {name: line[name] for name in numbers | words} == numbers | words
    assert line["all"] == [numbers | words]


def test_what_is_nested_without_end_is_cut(configure: Callable[..., None], output: Logs) -> None:
    """A list may contain itself."""
    endless: list[Any] = []
    endless.append(endless)
    configure()
    structlog.stdlib.get_logger("parley.test").info("something", value=endless)
    assert output.lines("something")[0]["value"] == [[[[[[[["..."]]]]]]]]


def test_what_cannot_be_written_is_told_without_its_words(
    configure: Callable[..., None], output: Logs, capfd: pytest.CaptureFixture[str]
) -> None:
    """By default, logging would print such an event to standard error, unredacted."""
    configure()
    logging.getLogger("uvicorn.error").info("%d tokens", CANARY)
    (line,) = output.lines("unloggable")
    assert line["location"].startswith("test_logs:")
    assert CANARY not in output.getvalue()
    assert capfd.readouterr() == ("", "")
