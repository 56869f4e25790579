"""Settings: the values that the environment may hold, and the errors for wrong ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from parley.environment import SettingsError, settings_from, unknown_variables, variables
from parley.settings import Secret, Settings
from tests.support.canaries import CANARY, CANARY_KEY

if TYPE_CHECKING:
    from pathlib import Path

ADDRESS = "an http:// or https:// address without user, query or fragment"
UPSTREAM = {"OPENAI_BASE_URL": "http://localhost:1234/v1", "PARLEY_MODEL": "some-model"}


def problems(**environment: str) -> list[str]:
    """Return the lines of the error for these variables."""
    with pytest.raises(SettingsError) as caught:
        settings_from(environment)
    return str(caught.value).splitlines()


def test_nothing_has_to_be_set() -> None:
    """By default, Parley uses the embedded model."""
    settings = settings_from({})
    assert settings == Settings()
    assert settings.embedded


def test_every_setting_is_read_from_its_variable(tmp_path: Path) -> None:
    """No value equals its default."""
    keys = tmp_path / "keys"
    keys.write_text(f"{CANARY_KEY}3 \r\n\n")
    environment = {
        "OPENAI_API_KEY": CANARY_KEY,
        "OPENAI_BASE_URL": "https://example.com/v1",
        "PARLEY_MODEL": "some-model",
        "PARLEY_SYSTEM_PROMPT": "Be brief.\nBe kind.",
        "PARLEY_AGENT": "my_agents.weather:agent",
        "PARLEY_TEMPERATURE": "0.5",
        "PARLEY_REASONING_EFFORT": "low",
        "PARLEY_EXTRA_BODY": '{"seed": 1}',
        "PARLEY_EXTRA_HEADERS": '{"X-Team": "a"}',
        "PARLEY_HOST": "::1",
        "PARLEY_PORT": "0",
        "PARLEY_WORKERS": "2",
        "PARLEY_CORS_ORIGINS": "https://app.example,http://localhost:3000",
        "PARLEY_API_KEYS": f"{CANARY_KEY},{CANARY_KEY}2",
        "PARLEY_API_KEYS_FILE": str(keys),
        "PARLEY_METRICS_KEY": f"{CANARY_KEY}4",
        "PARLEY_TRUSTED_PROXIES": "10.0.0.0/8,192.0.2.1",
        "PARLEY_REQUESTS_PER_MINUTE": "60",
        "PARLEY_MAX_STREAMS_PER_CALLER": "2",
        "PARLEY_TOKENS_PER_MINUTE": "1000",
        "PARLEY_MAX_OUTPUT_TOKENS": "5",
        "PARLEY_REQUEST_TIMEOUT_S": "6",
        "PARLEY_CONNECT_TIMEOUT_S": "7.5",
        "PARLEY_FIRST_TOKEN_TIMEOUT_S": "8",
        "PARLEY_IDLE_TIMEOUT_S": "9",
        "PARLEY_RETRIES": "3",
        "PARLEY_FALLBACK_BASE_URL": "https://example.org/v1",
        "PARLEY_FALLBACK_API_KEY": CANARY_KEY,
        "PARLEY_FALLBACK_MODEL": "other-model",
        "PARLEY_HOLD_HEADERS_S": "1",
        "PARLEY_HEARTBEAT_S": "2",
        "PARLEY_MAX_STREAMS": "3",
        "PARLEY_MAX_QUEUE": "0",
        "PARLEY_QUEUE_TIMEOUT_S": "4",
        "PARLEY_READ_TIMEOUT_S": "5",
        "PARLEY_KEEP_ALIVE_S": "60",
        "PARLEY_WRITE_TIMEOUT_S": "6",
        "PARLEY_DRAIN_TIMEOUT_S": "7",
        "PARLEY_LOG_LEVEL": "debug",
        "PARLEY_LOG_FORMAT": "console",
        "PARLEY_LOG_UPSTREAM_TEXT": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://other:4318/v1/traces",
    }
    settings = settings_from(environment)
    assert settings.openai_api_key is not None
    assert settings.openai_api_key.reveal() == CANARY_KEY
    assert settings.fallback_api_key is not None
    assert settings.fallback_api_key.reveal() == CANARY_KEY
    assert settings.added_headers() == {"X-Team": "a"}
    assert settings.keys() == [CANARY_KEY, f"{CANARY_KEY}2", f"{CANARY_KEY}3"]
    assert settings.metrics_keys() == [f"{CANARY_KEY}4"]
    without_secrets = dict.fromkeys(("openai_api_key", "fallback_api_key", "api_keys", "metrics_key", "extra_headers"))
    assert msgspec.structs.replace(settings, **without_secrets) == Settings(
        openai_base_url="https://example.com/v1",
        model="some-model",
        system_prompt="Be brief.\nBe kind.",
        agent="my_agents.weather:agent",
        temperature=0.5,
        reasoning_effort="low",
        extra_body='{"seed": 1}',
        host="::1",
        port=0,
        workers=2,
        cors_origins="https://app.example,http://localhost:3000",
        api_keys_file=str(keys),
        trusted_proxies="10.0.0.0/8,192.0.2.1",
        requests_per_minute=60,
        max_streams_per_caller=2,
        tokens_per_minute=1000,
        max_output_tokens=5,
        request_timeout_s=6.0,
        connect_timeout_s=7.5,
        first_token_timeout_s=8.0,
        idle_timeout_s=9.0,
        retries=3,
        fallback_base_url="https://example.org/v1",
        fallback_model="other-model",
        hold_headers_s=1.0,
        heartbeat_s=2.0,
        max_streams=3,
        max_queue=0,
        queue_timeout_s=4.0,
        read_timeout_s=5.0,
        keep_alive_s=60.0,
        write_timeout_s=6.0,
        drain_timeout_s=7.0,
        log_level="debug",
        log_format="console",
        log_upstream_text=True,
        otel_exporter_otlp_endpoint="http://collector:4318/",
        otel_exporter_otlp_traces_endpoint="http://other:4318/v1/traces",
    )
    assert settings_from({"PARLEY_MODEL_PATH": "a.gguf"}).model_path == "a.gguf"
    assert {*environment, "PARLEY_MODEL_PATH"} == {variable.name for variable in variables()}


def test_traces_go_where_opentelemetrys_own_variables_say() -> None:
    """The traces endpoint is a complete URL and takes precedence; the general endpoint is a base URL."""
    assert Settings().traces_url is None
    both = Settings(
        otel_exporter_otlp_endpoint="http://a:4318/", otel_exporter_otlp_traces_endpoint="http://b:4318/traces"
    )
    assert both.traces_url == "http://b:4318/traces"
    assert (
        msgspec.structs.replace(both, otel_exporter_otlp_traces_endpoint=None).traces_url == "http://a:4318/v1/traces"
    )


def test_an_empty_variable_is_as_good_as_none() -> None:
    """Compose files and manifests pass unset variables on as empty ones."""
    assert settings_from(dict.fromkeys([variable.name for variable in variables()], "")) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("PARLEY_PORT", "eighty", "PARLEY_PORT: 'eighty' is not allowed; it must be a whole number from 0 to 65535."),
        ("PARLEY_PORT", "65536", "PARLEY_PORT: '65536' is not allowed; it must be a whole number from 0 to 65535."),
        ("PARLEY_PORT", "80.5", "PARLEY_PORT: '80.5' is not allowed; it must be a whole number from 0 to 65535."),
        ("PARLEY_TEMPERATURE", "3", "PARLEY_TEMPERATURE: '3' is not allowed; it must be a number from 0 to 2."),
        ("PARLEY_TEMPERATURE", "nan", "PARLEY_TEMPERATURE: 'nan' is not allowed; it must be a number from 0 to 2."),
        ("PARLEY_EXTRA_BODY", "[1]", "PARLEY_EXTRA_BODY: it must be a JSON object."),
        (
            "PARLEY_EXTRA_HEADERS",
            '{"a": 1}',
            "PARLEY_EXTRA_HEADERS: it must be a JSON object of header names and values.",
        ),
        (
            "PARLEY_EXTRA_HEADERS",
            '{"Content-Length": "5"}',
            "PARLEY_EXTRA_HEADERS: it must not set content-length; Parley sets what frames a request.",
        ),
        (
            "PARLEY_IDLE_TIMEOUT_S",
            "0",
            "PARLEY_IDLE_TIMEOUT_S: '0' is not allowed; it must be a number above 0, up to 3600.",
        ),
        (
            "PARLEY_IDLE_TIMEOUT_S",
            "inf",
            "PARLEY_IDLE_TIMEOUT_S: 'inf' is not allowed; it must be a number above 0, up to 3600.",
        ),
        (
            "PARLEY_LOG_LEVEL",
            "verbose",
            "PARLEY_LOG_LEVEL: 'verbose' is not allowed; it must be one of debug, error, info, warning.",
        ),
        (
            "PARLEY_HOST",
            "0.0.0.0\n",  # refused for its line break
            r"PARLEY_HOST: '0.0.0.0\n' is not allowed; it must be 1 to 200 characters without blanks.",
        ),
        (
            "OPENAI_API_KEY",
            CANARY_KEY + " ",
            "OPENAI_API_KEY: its value is not allowed; it must be printable ASCII without blanks.",
        ),
        (
            "OPENAI_BASE_URL",
            f"https://user:{CANARY_KEY}@example.com",
            f"OPENAI_BASE_URL: its value is not allowed; it must be {ADDRESS}.",
        ),
        (
            "PARLEY_API_KEYS",
            f"{CANARY_KEY} {CANARY_KEY}",
            "PARLEY_API_KEYS: its value is not allowed; it must be printable ASCII without blanks.",
        ),
        (
            "PARLEY_SYSTEM_PROMPT",
            f"{CANARY}\udcff",  # Python's form of a byte that is not UTF-8
            "PARLEY_SYSTEM_PROMPT: its value is not allowed; it must be any text in UTF-8.",
        ),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(name: str, value: str, line: str) -> None:
    """The line names the variable, the error and the allowed values; it repeats no value that may be secret."""
    assert problems(**{**UPSTREAM, name: value})[0] == line


@pytest.mark.parametrize("address", ["http://h:x/v1", "http://[::1", "http://", "http://h:/v1", "ftp://h/v1"])
def test_an_address_that_no_client_can_use_is_refused(address: str) -> None:
    """Otherwise the start would fail with a traceback."""
    (line,) = problems(OPENAI_BASE_URL=address, PARLEY_MODEL="x")
    assert line.startswith("OPENAI_BASE_URL: its value is not allowed")


@pytest.mark.parametrize(
    "origins",
    [
        "https://a.example/",
        "a.example",
        "https://*.example",
        "https://a,",
        "*,https://a",
        "https://A.example",
        "HTTPS://a.example",
        "https://a.example:443",
        "http://a.example:80,https://a.example",
        "https://a.example:",
        "https://a.example:0",
        "https://a.example:08443",
        "https://a.example:65536",
        "https://a.example:٤٤٣",
        "https://ä.example",
        "https://a..example",
        '"https://a.example"',
        "https://a.example ,https://b.example",
        "https://[::1",
    ],
)
def test_origins_that_no_browser_would_send_are_refused(origins: str) -> None:
    """Otherwise the setting would look valid but allow no origin, or too many."""
    (line,) = problems(PARLEY_CORS_ORIGINS=origins)
    assert line.startswith("PARLEY_CORS_ORIGINS: ")


@pytest.mark.parametrize(
    "origins",
    [
        "*",
        "http://localhost:3000",
        "https://a.example:80,http://a.example:443",
        "http://a.example:8080,https://a.example:4430",
        "https://xn--4ca.example",
        "http://127.0.0.1:65535,http://[::1]:8080",
    ],
)
def test_origins_that_a_browser_sends_are_taken(origins: str) -> None:
    """Their values stay unchanged."""
    assert settings_from({"PARLEY_CORS_ORIGINS": origins}).cors_origins == origins


def test_keys_that_would_let_anybody_in_or_nobody_are_refused(tmp_path: Path) -> None:
    """An empty list, a guessable key and a missing file are refused; the error shows no key."""
    (line,) = problems(PARLEY_API_KEYS=",")
    assert line == "PARLEY_API_KEYS: there is no key in it; unset it to let anyone in."
    (line,) = problems(PARLEY_API_KEYS=f"{CANARY_KEY},guessable")
    assert line.startswith("PARLEY_API_KEYS: a key has fewer than 16 characters")
    assert "guessable" not in line
    (line,) = problems(PARLEY_METRICS_KEY="guessable")
    assert line.startswith("PARLEY_METRICS_KEY: it has fewer than 16 characters")
    assert "guessable" not in line
    (line,) = problems(PARLEY_API_KEYS_FILE=str(tmp_path / "none"))
    assert line == f"PARLEY_API_KEYS_FILE: {tmp_path / 'none'} cannot be read."


@pytest.mark.parametrize(
    "content",
    ["\n", f"{CANARY_KEY},{CANARY_KEY}2", f"{CANARY_KEY} {CANARY_KEY}2", "é" * 20, b"\xff" * 20],
    ids=["none", "comma", "blank", "é", "bytes"],
)
def test_a_file_of_keys_is_read_as_strictly_as_the_variable(tmp_path: Path, content: str | bytes) -> None:
    """One line must not hold two keys, and a key must be something that a header can carry."""
    path = tmp_path / "keys"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (line,) = problems(PARLEY_API_KEYS_FILE=str(path))
    assert line.startswith(f"PARLEY_API_KEYS_FILE: {path} must hold keys")


@pytest.mark.parametrize("proxies", ["*", "10.0.0.1/8", "10.0.0.0/33", "haproxy", "10.0.0.1,"])
def test_proxies_that_would_be_nobody_or_everybody_are_refused(proxies: str) -> None:
    """If every address were trusted, callers could choose their own address."""
    (line,) = problems(PARLEY_TRUSTED_PROXIES=proxies)
    assert line.startswith("PARLEY_TRUSTED_PROXIES: ")


def test_all_wrong_values_are_told_at_once() -> None:
    """The operator can fix all of them in one go."""
    lines = problems(PARLEY_PORT="x", PARLEY_LOG_FORMAT="y")
    assert [line.partition(":")[0] for line in lines] == ["PARLEY_PORT", "PARLEY_LOG_FORMAT"]


def test_an_upstream_needs_a_model() -> None:
    """No default model would suit every upstream."""
    (line,) = problems(OPENAI_BASE_URL="http://localhost/v1")
    assert line.startswith("PARLEY_MODEL: not set, but OPENAI_BASE_URL chooses an upstream")


def test_a_key_alone_chooses_no_upstream() -> None:
    """Many shells export OPENAI_API_KEY for other programs."""
    assert settings_from({"OPENAI_API_KEY": "sk-x"}).embedded
    assert settings_from({"OPENAI_API_KEY": "sk-x", "PARLEY_MODEL_PATH": "a.gguf"}).embedded
    assert not settings_from({"OPENAI_API_KEY": "sk-x", "PARLEY_MODEL": "some-model"}).embedded


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("PARLEY_LOG_LEVEL", "INFO", "info"),
        ("PARLEY_LOG_FORMAT", "Json", "json"),
        *(("PARLEY_LOG_UPSTREAM_TEXT", word, True) for word in ("yes", "Yes", "ON", "True", "1")),
        *(("PARLEY_LOG_UPSTREAM_TEXT", word, False) for word in ("no", "OFF", "False", "0")),
        ("PARLEY_CORS_ORIGINS", "https://a.example, http://b.example", "https://a.example,http://b.example"),
        ("PARLEY_TRUSTED_PROXIES", "10.0.0.0/8,  192.0.2.1", "10.0.0.0/8,192.0.2.1"),
    ],
)
def test_a_value_may_be_written_as_people_write_it(name: str, value: str, meant: object) -> None:
    """Capital letters, and blanks after commas, are accepted."""
    assert getattr(settings_from({name: value}), name.removeprefix("PARLEY_").lower()) == meant


def test_keys_may_have_blanks_between_them() -> None:
    """Blanks within a key are refused; another test covers that."""
    assert settings_from({"PARLEY_API_KEYS": f"{CANARY_KEY}, {CANARY_KEY}2"}).keys() == [CANARY_KEY, f"{CANARY_KEY}2"]


def test_an_upstream_excludes_a_model_file() -> None:
    """Otherwise it would be unclear which of the two answers."""
    (line,) = problems(**UPSTREAM, PARLEY_MODEL_PATH="a.gguf")
    assert line.startswith("PARLEY_MODEL_PATH: it embeds a model, but OPENAI_BASE_URL names an upstream")
    (line,) = problems(OPENAI_API_KEY="sk-x", PARLEY_MODEL="some-model", PARLEY_MODEL_PATH="a.gguf")
    assert line.startswith("PARLEY_MODEL_PATH: it embeds a model, but OPENAI_API_KEY names an upstream")


def test_the_embedded_model_excludes_half_a_fallback() -> None:
    """A fallback for the embedded model needs both an address and a model name."""
    (line,) = problems(PARLEY_FALLBACK_MODEL="x")
    assert line.startswith("PARLEY_FALLBACK_BASE_URL: not set, but the embedded model has no other beside it")
    (line,) = problems(PARLEY_FALLBACK_BASE_URL="http://localhost/v1")
    assert line.startswith("PARLEY_FALLBACK_MODEL: not set, but the fallback's address or key is")


def test_a_secret_does_not_show() -> None:
    """Neither `str` nor `repr` shows it, so that no log or traceback can."""
    settings = Settings(openai_api_key=Secret(CANARY_KEY))
    assert CANARY_KEY not in f"{settings!r} {settings} {settings.openai_api_key} {settings.openai_api_key!r}"


def test_a_variable_that_is_no_setting_is_told_with_the_one_meant() -> None:
    """Otherwise a typing error would go unnoticed; variables of other programs are ignored."""
    names = ["PARLEY_MAX_TOKENS", "PARLEY_ZZZ", "PARLEY_OPENAI_API_KEY", "PARLEY_PORT", "OPENAI_ORG_ID", "HOME"]
    assert list(unknown_variables(dict.fromkeys(names, "1"))) == [
        ("PARLEY_MAX_TOKENS", "PARLEY_MAX_OUTPUT_TOKENS"),
        ("PARLEY_OPENAI_API_KEY", "OPENAI_API_KEY"),
        ("PARLEY_ZZZ", None),
    ]
