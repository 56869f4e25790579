"""Owns the settings: what an operator may set, and what values are allowed."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

# No server's ceiling can be higher.
LONGEST_S: Final = 3600
MOST_OUTPUT_TOKENS: Final = 1_000_000

_Seconds = Annotated[float, Meta(gt=0, le=LONGEST_S)]
_Name = Annotated[str, Meta(pattern=r"^\S{1,200}\Z", extra={"allowed": "1 to 200 characters without blanks"})]
_PORT = r"([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
# As a browser writes it: in small letters, in ASCII, and without the port that goes without saying.
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
    """A string that shows only as asterisks; `reveal()` gives it to the code that has to send it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "'***'"

    def reveal(self) -> str:
        """Return the string itself."""
        return self._value


class SecretText(Secret):
    """A secret that can hold blanks."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set, one field a variable: `port` is PARLEY_PORT.

    `openai_*` and `otel_*` keep their usual names. Seconds are of wall-clock time, tokens are the model's own.
    """

    openai_api_key: Annotated[Secret | None, Meta(description="Key for the upstream. It needs `PARLEY_MODEL`.")] = None
    openai_base_url: Annotated[
        _Address | None,
        Meta(
            description="Any OpenAI-compatible API, including its `/v1`. Unset: OpenAI's own, if key and model are set."
        ),
    ] = None
    model: Annotated[
        _Name | None,
        Meta(description="The model's name. Needed with an upstream; for the embedded model it is just a label."),
    ] = None
    model_path: Annotated[
        str | None, Meta(description="A GGUF file to embed instead of the SmolLM2 that comes with Parley.")
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
            description="An agent of your own that answers, as `package.module:name`: an `agents.Agent` of the OpenAI "
            "Agents SDK, or a callable that returns one. Unset: the model alone."
        ),
    ] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None,
        Meta(description="Sampling temperature. Unset: the upstream's own default; 0 for the embedded model."),
    ] = None
    reasoning_effort: Annotated[
        _Name | None,
        Meta(description="How long a thinking model thinks, in its own word, like `low`. Unset: the model's default."),
    ] = None
    extra_body: Annotated[
        str | None,
        Meta(
            description="A JSON object that is merged into each request to the upstream, like "
            '`{"chat_template_kwargs": {"enable_thinking": false}}`.'
        ),
    ] = None
    extra_headers: Annotated[
        SecretText | None, Meta(description="A JSON object of headers that each request to the upstream gets.")
    ] = None
    host: Annotated[_Name, Meta(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes a free one and logs it.")] = 8000
    workers: Annotated[
        int, Meta(ge=1, le=64, description="Processes that serve, and share an embedded model. All limits are of each.")
    ] = 1
    cors_origins: Annotated[
        _Origins | None, Meta(description="Origins whose pages may call Parley from a browser. Unset: none.")
    ] = None
    max_output_tokens: Annotated[
        int, Meta(ge=1, le=MOST_OUTPUT_TOKENS, description="Default and ceiling of a request's `max_output_tokens`.")
    ] = 2000
    request_timeout_s: Annotated[
        _Seconds, Meta(description="Default and ceiling of a request's `timeout_s`, first byte to last.")
    ] = 30.0
    connect_timeout_s: Annotated[_Seconds, Meta(description="Longest wait for a connection upstream.")] = 5.0
    first_token_timeout_s: Annotated[_Seconds, Meta(description="Longest wait for the first text.")] = 20.0
    idle_timeout_s: Annotated[_Seconds, Meta(description="Longest gap between two texts.")] = 10.0
    retries: Annotated[
        int, Meta(ge=0, le=10, description="Times to ask the upstream again that failed for a moment, before any text.")
    ] = 2
    fallback_base_url: Annotated[
        _Address | None, Meta(description="Another API to ask where the first fails before any text. Unset: the same.")
    ] = None
    fallback_api_key: Annotated[
        Secret | None, Meta(description="Its key. Unset: the same, for the same API; for another none.")
    ] = None
    fallback_model: Annotated[_Name | None, Meta(description="The model to ask there; turns the fallback on.")] = None
    hold_headers_s: Annotated[
        _Seconds,
        Meta(description="Longest wait for the first text before the headers go out; errors are chunks from then on."),
    ] = 4.0
    heartbeat_s: Annotated[
        _Seconds, Meta(description="Longest silence before a `: ping` line keeps a stream alive.")
    ] = 4.0
    max_streams: Annotated[
        Annotated[int, Meta(ge=1, le=100_000)] | None,
        Meta(description="Answers made at once. Unset: 100 for an upstream; for the embedded model 2, its slots."),
    ] = None
    max_queue: Annotated[int, Meta(ge=0, le=100_000, description="Requests that may wait for their turn.")] = 50
    queue_timeout_s: Annotated[_Seconds, Meta(description="Longest wait for a turn.")] = 5.0
    api_keys: Annotated[
        Secret | None,
        Meta(description="Keys that callers may send, with commas between them. Unset: nobody needs one."),
    ] = None
    api_keys_file: Annotated[str | None, Meta(description="A file with such keys, one a line.")] = None
    metrics_key: Annotated[
        Secret | None, Meta(description="The key to `/metrics`, and to nothing else. Unset: any of the callers' keys.")
    ] = None
    trusted_proxies: Annotated[
        _Name | None, Meta(description="Proxies whose X-Forwarded-For counts: addresses or networks, comma-separated.")
    ] = None
    requests_per_minute: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Meta(
            description="Requests a minute that each caller may send: each key, or without keys each address. A "
            "request counts if it reached an upstream, also if it failed or the caller left."
        ),
    ] = None
    max_streams_per_caller: Annotated[
        Annotated[int, Meta(ge=1, le=100_000)] | None,
        Meta(description="Answers made, or waited for, at once for each caller."),
    ] = None
    tokens_per_minute: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000_000)] | None,
        Meta(description="Tokens a minute that may be spent, input and output of all callers together."),
    ] = None
    read_timeout_s: Annotated[_Seconds, Meta(description="Longest wait for a client to send its request.")] = 10.0
    keep_alive_s: Annotated[_Seconds, Meta(description="Longest time that an idle connection stays open.")] = 75.0
    write_timeout_s: Annotated[
        _Seconds, Meta(description="Longest wait for a client to take something of its answer.")
    ] = 10.0
    drain_timeout_s: Annotated[
        _Seconds, Meta(description="Longest time that running answers are given to end when Parley is told to stop.")
    ] = 30.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe level that is logged.")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "console"], Meta(description="`auto` is `console` on a terminal and `json` elsewhere.")
    ] = "auto"
    log_upstream_text: Annotated[
        bool, Meta(description="Log what an upstream says of its errors, secrets hidden. It may quote messages.")
    ] = False
    otel_exporter_otlp_endpoint: Annotated[
        _Address | None,
        Meta(description="An OpenTelemetry collector, which takes traces over HTTP. Unset: there are none."),
    ] = None
    otel_exporter_otlp_traces_endpoint: Annotated[
        _Address | None, Meta(description="The same, with the path for traces (`/v1/traces`); it comes before it.")
    ] = None

    @property
    def embedded(self) -> bool:
        """Whether the embedded model serves; a key alone, which many shells have, chooses no upstream."""
        return self.openai_base_url is None and (self.openai_api_key is None or self.model is None)

    @property
    def url(self) -> str:
        """Where Parley listens."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    @property
    def traces_url(self) -> str | None:
        """Where traces go, if anywhere."""
        if self.otel_exporter_otlp_endpoint is None:
            return self.otel_exporter_otlp_traces_endpoint
        return self.otel_exporter_otlp_traces_endpoint or f"{self.otel_exporter_otlp_endpoint.rstrip('/')}/v1/traces"

    def added_fields(self) -> dict[str, Any]:
        """Return the fields that each request to the upstream gets.

        Raises:
            msgspec.DecodeError: if they are no JSON object.
        """
        return msgspec.json.decode(self.extra_body, type=dict[str, Any]) if self.extra_body else {}

    def added_headers(self) -> dict[str, str]:
        """Return the headers that each request to the upstream gets.

        Raises:
            msgspec.DecodeError: if they are no JSON object of strings.
        """
        return msgspec.json.decode(self.extra_headers.reveal(), type=_Headers) if self.extra_headers else {}

    def keys(self) -> list[str]:
        """Return the keys that callers may send; where there are none, nobody needs one."""
        return [key for key in (self.api_keys.reveal() if self.api_keys else "").split(",") if key]

    def metrics_keys(self) -> list[str]:
        """Return the keys to the metrics; where there are none, nobody needs one."""
        return self.keys() if self.metrics_key is None else [self.metrics_key.reveal()]
