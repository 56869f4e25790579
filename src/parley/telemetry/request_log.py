"""Owns the line that each request leaves in the log, whatever became of it: what it says, and how loudly."""

from __future__ import annotations

from http import HTTPMethod, HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
import structlog
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Mapping

    from litestar.types import HTTPScope

_CLIENT_ERRORS: Final = {*range(400, 500), HTTPStatus.HTTP_VERSION_NOT_SUPPORTED}
PROBES: Final = ("/health", "/metrics")

_log: Final = structlog.stdlib.get_logger(__name__)

_Milliseconds = Annotated[int, Meta(ge=0)]
_Count = Annotated[int, Meta(ge=0)]


class RequestLog(msgspec.Struct, frozen=True, kw_only=True):
    """One request. What did not happen is `None`: a model that was not asked, a text that did not come.

    Nothing of it is the caller's text but the correlation id, where that is harmless.
    """

    correlation_id: Annotated[str, Meta(description="The caller's, where it sent one that is harmless.")]
    outcome: Annotated[
        Literal["completed", "failed", "client_disconnected", "cancelled"],
        Meta(description="`completed`, `failed`, `client_disconnected` or `cancelled`: at the end of the grace."),
    ]
    bytes_in: Annotated[_Count, Meta(description="Of the request's body, as far as it was read.")]
    bytes_out: Annotated[_Count, Meta(description="Of the response's body.")]
    total_ms: Annotated[_Milliseconds, Meta(description="From the request's first line to the response's end.")]
    trace_id: Annotated[str | None, Meta(description="Its trace's, where it has one.")] = None
    method: Annotated[
        str | None, Meta(description="`other`, where it is none of HTTP's; none, where it was no HTTP.")
    ] = None
    route: Annotated[str | None, Meta(description="The path's template; none, where there is no such path.")] = None
    status: Annotated[
        int | None,
        Meta(description="499, where the client left before there was one; none, where nobody got one."),
    ] = None
    error_code: Annotated[str | None, Meta(description="The error's code.")] = None
    reason: Annotated[
        str | None,
        Meta(
            description="Which of several: `queue_full`, `queue_timeout`, `draining`, `drain_timeout`, "
            "`connections_full`, `connect_timeout`, `no_key`, `wrong_key`, `requests_per_minute`, "
            "`streams_per_caller`, `tokens_per_minute`, `unfinished_requests`."
        ),
    ] = None
    caller: Annotated[str | None, Meta(description="The first 8 hexadecimal digits of its key's SHA-256.")] = None
    chunks: Annotated[_Count | None, Meta(description="Of the stream.")] = None
    queue_ms: Annotated[_Milliseconds | None, Meta(description="The wait for a turn, whether it came or not.")] = None
    first_token_ms: Annotated[_Milliseconds | None, Meta(description="When the first text came.")] = None
    model: Annotated[str | None, Meta(description="The model that answered, or was asked last.")] = None
    is_fallback: Annotated[bool | None, Meta(description="Whether that is the fallback.")] = None
    attempts: Annotated[_Count | None, Meta(description="Times that a model was asked.")] = None
    upstream_status: Annotated[int | None, Meta(description="The HTTP status of the upstream's error.")] = None
    finish_reason: Annotated[str | None, Meta(description="Why the model stopped.")] = None
    input_tokens: Annotated[_Count | None, Meta(description="Of the prompt.")] = None
    output_tokens: Annotated[_Count | None, Meta(description="Of the answer, or what came of it.")] = None
    usage_source: Annotated[
        Literal["upstream", "estimate", "none"] | None,
        Meta(description="Who counted them: `upstream`, `estimate` or `none`."),
    ] = None

    @property
    def is_failure(self) -> bool:
        """Whether it failed by no fault of the caller's."""
        return self.outcome in {"failed", "cancelled"} and self.status not in _CLIENT_ERRORS


_FIELDS: Final = frozenset(RequestLog.__struct_fields__)


def request_log(scope: HTTPScope, bound: Mapping[str, Any], **measured: Any) -> RequestLog:
    """Put together what was measured of a request and what the layers that served it have bound to its context."""
    # Never the path itself, which is the caller's text, as a made-up method is.
    method = scope["method"] if scope["method"] in HTTPMethod.__members__ else "other"
    known: dict[str, Any] = {"method": method, "route": scope.get("path_template"), **measured, **bound}
    return RequestLog(**{name: value for name, value in known.items() if name in _FIELDS})


def write(line: RequestLog) -> None:
    """Log it."""
    is_probe = str(line.route).startswith(PROBES) and line.outcome == "completed"
    log = _log.warning if line.is_failure else _log.debug if is_probe else _log.info
    log("request", **msgspec.structs.asdict(line))
