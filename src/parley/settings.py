"""The settings: what the operator can set, and which values are allowed."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

# The highest ceilings that an operator can set.
LONGEST_S: Final = 3600
MOST_OUTPUT_TOKENS: Final = 1_000_000

_Seconds = Annotated[float, Meta(gt=0, le=LONGEST_S)]
_Name = Annotated[str, Meta(pattern=r"^\S{1,200}\Z", extra={"allowed": "1 to 200 characters without blanks"})]
_PORT = r"([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
# As browsers write it: in lower case, in ASCII, and without the scheme's default port.
_HOST = r"([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])"
_ORIGIN = rf"(http://{_HOST}(:(?!80\b|0){_PORT})?|https://{_HOST}(:(?!443\b|0){_PORT})?)"
_Origins = Annotated[
    str,
    Meta(
        pattern=rf"^(\*|{_ORIGIN}(,{_ORIGIN})*)\Z",
        extra={
            "allowed": "`*`, or origins as browsers send them, like https://app.example:8443, with commas between them"
        },
    ),
]
_Address = Annotated[
    str,
    Meta(
        pattern=rf"^https?://(\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]]+)(:{_PORT})?(/[^\s?#]*)?\Z",
        extra={"allowed": "an http:// or https:// address without user, query or fragment"},
    ),
]
_Headers = dict[
    Annotated[str, Meta(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")], Annotated[str, Meta(pattern=r"^[ -~]*\Z")]
]


class Secret:
    """A string whose `repr` is asterisks; code that has to send it calls `reveal()`."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "'***'"

    def reveal(self) -> str:
        """Return the string itself."""
        return self._value


class SecretText(Secret):
    """A secret that can contain spaces."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set, one field per variable: `port` is PARLEY_PORT.

    `openai_*` and `otel_*` keep their usual names. Seconds are wall-clock time. Tokens are the model's own.
    """

    openai_api_key: Annotated[
        Secret | None, Meta(description="Key for the upstream. Without `PARLEY_MODEL`, it is not used.")
    ] = None
    openai_base_url: Annotated[
        _Address | None,
        Meta(
            description="Any OpenAI-compatible API, including its `/v1`. Unset: OpenAI's own, if key and model are set."
        ),
    ] = None
    model: Annotated[
        _Name | None,
        Meta(description="The model's name. Required with an upstream. For the embedded model, it is only a label."),
    ] = None
    model_path: Annotated[
        str | None, Meta(description="A GGUF file to embed instead of SmolLM2, which comes with Parley.")
    ] = None
    system_prompt: Annotated[
        str | None,
        Meta(
            description="Instructions that precede each conversation. Unset: none for an upstream; for the embedded "
            "model `You are a helpful assistant who speaks English.` An agent's own instructions take precedence."
        ),
    ] = None
    agent: Annotated[
        Annotated[
            str,
            Meta(pattern=r"^[\w.]+:[\w.]+\Z", extra={"allowed": "a module and a name in it, like package.module:name"}),
        ]
        | None,
        Meta(
            description="Your own agent, as `package.module:name`: an `agents.Agent` of the OpenAI "
            "Agents SDK, or a callable that returns one. Unset: the model answers alone."
        ),
    ] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None,
        Meta(description="Sampling temperature. Unset: the upstream's own default; 0 for the embedded model."),
    ] = None
    reasoning_effort: Annotated[
        _Name | None,
        Meta(description="How much a thinking model thinks, like `low`. Unset: the model's default."),
    ] = None
    extra_body: Annotated[
        str | None,
        Meta(
            description="A JSON object to merge into each request to the upstream, like "
            '`{"chat_template_kwargs": {"enable_thinking": false}}`.'
        ),
    ] = None
    extra_headers: Annotated[
        SecretText | None, Meta(description="A JSON object of headers to add to each request to the upstream.")
    ] = None
    host: Annotated[_Name, Meta(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on. 0 takes a free port and logs it.")] = 8000
    workers: Annotated[
        int, Meta(ge=1, le=64, description="Worker processes. They share the embedded model. Each has its own limits.")
    ] = 1
    cors_origins: Annotated[_Origins | None, Meta(description="Origins whose pages may call Parley. Unset: none.")] = (
        None
    )
    max_output_tokens: Annotated[
        int, Meta(ge=1, le=MOST_OUTPUT_TOKENS, description="Default and ceiling of a request's `max_output_tokens`.")
    ] = 2000
    request_timeout_s: Annotated[
        _Seconds, Meta(description="Default and ceiling of a request's `timeout_s`, including its time in the queue.")
    ] = 30.0
    connect_timeout_s: Annotated[_Seconds, Meta(description="Longest wait for a connection to the upstream.")] = 5.0
    first_token_timeout_s: Annotated[_Seconds, Meta(description="Longest wait for the first token.")] = 20.0
    idle_timeout_s: Annotated[_Seconds, Meta(description="Longest gap between two tokens.")] = 10.0
    retries: Annotated[
        int, Meta(ge=0, le=10, description="Retries after a transient upstream failure, before the first token.")
    ] = 2
    fallback_base_url: Annotated[
        _Address | None,
        Meta(description="The fallback's API, asked if the first fails before the first token. Unset: the same API."),
    ] = None
    fallback_api_key: Annotated[
        Secret | None, Meta(description="The fallback's key. Unset: the same key for the same API; none for another.")
    ] = None
    fallback_model: Annotated[
        _Name | None, Meta(description="The fallback's model. Setting it turns the fallback on.")
    ] = None
    hold_headers_s: Annotated[
        _Seconds,
        Meta(description="Longest time to hold the headers back for the first token. After that, errors are chunks."),
    ] = 4.0
    heartbeat_s: Annotated[
        _Seconds, Meta(description="Longest silence in a stream before Parley sends a `: ping` line.")
    ] = 4.0
    max_streams: Annotated[
        Annotated[int, Meta(ge=1, le=100_000)] | None,
        Meta(description="Streams at once. Unset: 100 for an upstream, 2 for the embedded model."),
    ] = None
    max_queue: Annotated[int, Meta(ge=0, le=100_000, description="Requests that can wait for a place.")] = 50
    queue_timeout_s: Annotated[_Seconds, Meta(description="Longest wait for a place.")] = 5.0
    api_keys: Annotated[
        Secret | None,
        Meta(description="Callers' API keys: at least 16 characters each, comma-separated. Unset: none required."),
    ] = None
    api_keys_file: Annotated[str | None, Meta(description="A file with such keys, one per line.")] = None
    metrics_key: Annotated[Secret | None, Meta(description="The key for `/metrics` only. Unset: any caller's.")] = None
    trusted_proxies: Annotated[
        _Name | None,
        Meta(description="Proxies whose X-Forwarded-For Parley trusts: addresses or networks, separated by commas."),
    ] = None
    requests_per_minute: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Meta(
            description="Requests per minute and caller: per key, or without keys per address. A "
            "request counts once it reached an upstream, even if it then fails."
        ),
    ] = None
    max_streams_per_caller: Annotated[
        Annotated[int, Meta(ge=1, le=100_000)] | None,
        Meta(description="Open requests per caller, including those that wait."),
    ] = None
    tokens_per_minute: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000_000)] | None,
        Meta(description="Tokens per minute and worker, input and output of all callers."),
    ] = None
    read_timeout_s: Annotated[_Seconds, Meta(description="Longest wait for a client to send its request.")] = 10.0
    keep_alive_s: Annotated[_Seconds, Meta(description="How long an idle connection stays open.")] = 75.0
    write_timeout_s: Annotated[_Seconds, Meta(description="Longest time that a client may read nothing.")] = 10.0
    drain_timeout_s: Annotated[
        _Seconds, Meta(description="Longest time for open streams to end when Parley stops.")
    ] = 30.0
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Lowest level to log.")] = (
        "info"
    )
    log_format: Annotated[
        Literal["auto", "json", "console"], Meta(description="`auto` is `console` on a terminal and `json` elsewhere.")
    ] = "auto"
    log_upstream_text: Annotated[
        bool, Meta(description="Log the upstream's error texts, with secrets hidden. They may quote messages.")
    ] = False
    otel_exporter_otlp_endpoint: Annotated[
        _Address | None,
        Meta(description="An OpenTelemetry collector for traces over HTTP. Unset: no traces."),
    ] = None
    otel_exporter_otlp_traces_endpoint: Annotated[
        _Address | None, Meta(description="The same, with the path for traces (`/v1/traces`). It takes precedence.")
    ] = None

    @property
    def embedded(self) -> bool:
        """Whether the embedded model answers; a key without a model, as in many shells, does not select an upstream."""
        return self.openai_base_url is None and (self.openai_api_key is None or self.model is None)

    @property
    def url(self) -> str:
        """The URL at which Parley listens."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    @property
    def traces_url(self) -> str | None:
        """The URL to which traces are sent, or `None` if they are off."""
        if self.otel_exporter_otlp_endpoint is None:
            return self.otel_exporter_otlp_traces_endpoint
        return self.otel_exporter_otlp_traces_endpoint or f"{self.otel_exporter_otlp_endpoint.rstrip('/')}/v1/traces"

    def added_fields(self) -> dict[str, Any]:
        """Return the extra fields for each request to the upstream.

        Raises:
            msgspec.DecodeError: if `extra_body` is not a JSON object.
        """
        return msgspec.json.decode(self.extra_body, type=dict[str, Any]) if self.extra_body else {}

    def added_headers(self) -> dict[str, str]:
        """Return the extra headers for each request to the upstream.

        Raises:
            msgspec.DecodeError: if `extra_headers` is not a JSON object of header names and values.
        """
        return msgspec.json.decode(self.extra_headers.reveal(), type=_Headers) if self.extra_headers else {}

    def keys(self) -> list[str]:
        """Return the API keys that callers may use; if there are none, no key is required."""
        return [key for key in (self.api_keys.reveal() if self.api_keys else "").split(",") if key]

    def metrics_keys(self) -> list[str]:
        """Return the API keys for the metrics; if there are none, no key is required."""
        return self.keys() if self.metrics_key is None else [self.metrics_key.reveal()]
