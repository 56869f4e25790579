"""The contract: what the OpenAPI document says about the operations, and about changes to come."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import msgspec
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.spec import (
    Components,
    Example,
    License,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    Parameter,
    Reference,
    RequestBody,
    Schema,
    SecurityRequirement,
    SecurityScheme,
    Tag,
)
from litestar.openapi.spec.base import BaseSchemaObject
from litestar.openapi.spec.enums import OpenAPIType

from parley.chat.errors import EXPLANATIONS, ErrorCode
from parley.web import docs
from parley.web.examples import bodies
from parley.wire.errors import STATUS
from parley.wire.schema import MAX_BODY_BYTES, ErrorResponse, Health

if TYPE_CHECKING:
    from collections.abc import Mapping

_DESCRIPTION: Final = """\
POST a message, and read the model's answer as typed server-sent events.

Clients must be ready for these changes, which can come in any version:

- Responses and chunks get new fields. Ignore fields that you do not know.
- New error codes appear. If you do not know a code, act on `retryable` and the HTTP status.
- Requests get new optional fields, and new operations appear.
- New kinds of chunk appear. Parley sends them only if the request asks for them with a new field, as
  `include_reasoning` asks for `reasoning` chunks. The chunk's schema names the field as `x-requested-by`.

In a request, null for an optional field is the same as leaving it out. Any other change that can break a client raises
the first number of the version or, while that is 0, the second.
"""

# Errors that no operation returns; Litestar returns them if there is no such operation.
_ROUTING_ERRORS: Final = {ErrorCode.NOT_FOUND, ErrorCode.METHOD_NOT_ALLOWED}

# A client needs a key only if the operator has set any.
MAY_NEED_KEY: Final[list[SecurityRequirement]] = [{"key": []}, {}]

# An error with one of these statuses may say how long to wait.
_MAY_HAVE_RETRY_AFTER: Final = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE}

_CORRELATION_ID: Final = OpenAPIHeader(
    schema=Schema(type=OpenAPIType.STRING),
    required=True,
    description="The request's correlation ID, which is in each of its log lines.",
)
_RETRY_AFTER: Final = OpenAPIHeader(schema=Schema(type=OpenAPIType.INTEGER), description="Seconds to wait, if known.")
_AUTHENTICATE: Final = OpenAPIHeader(schema=Schema(type=OpenAPIType.STRING), required=True, description="`Bearer`.")
_STREAM_CACHING: Final = OpenAPIHeader(
    schema=Schema(type=OpenAPIType.STRING),
    required=True,
    description="`no-cache, no-transform`: proxies may neither store the stream nor compress it.",
)
_NO_STORE: Final = OpenAPIHeader(
    schema=Schema(type=OpenAPIType.STRING), required=True, description="`no-store`: proxies may not store it."
)
_OWN_CORRELATION_ID: Final = Parameter(
    name="X-Correlation-ID",
    param_in="header",
    schema=Schema(type=OpenAPIType.STRING),
    description="Your own ID for the request: 1 to 128 characters of `A-Z a-z 0-9 . _ -`. Parley replaces any other.",
)


def _failures(*codes: ErrorCode) -> dict[int, ResponseSpec]:
    """Describe the errors that an operation may return, by status."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        error, detail, *_ = EXPLANATIONS[code]
        by_status.setdefault(STATUS[code], []).append(f"- `{code}`: {error} {detail}")
    return {
        status: ResponseSpec(ErrorResponse, generate_examples=False, description="\n".join(of_it))
        for status, of_it in sorted(by_status.items())
    }


CHAT_FAILURES: Final = _failures(*(code for code in ErrorCode if code not in _ROUTING_ERRORS))
INFO_FAILURES: Final = _failures(ErrorCode.UNAUTHORIZED, ErrorCode.OVERLOADED, ErrorCode.INTERNAL)
LIVENESS_FAILURES: Final = _failures(ErrorCode.INTERNAL)
READINESS_FAILURES: Final = LIVENESS_FAILURES | {
    503: ResponseSpec(Health, generate_examples=False, description="Parley is not ready; `reason` says why.")
}


@dataclass
class DescribedOperation(Operation):
    """An operation with headers and examples, for which a handler's decorator has no place."""

    def __post_init__(self) -> None:
        """Add the headers and examples."""
        self.parameters = [_OWN_CORRELATION_ID]
        if isinstance(self.request_body, RequestBody):
            self.request_body.description = f"At most {MAX_BODY_BYTES >> 20} MiB."
            _exemplify(self.request_body.content)
        for status, response in (self.responses or {}).items():
            if isinstance(response, OpenAPIResponse):
                content = response.content or {}
                is_error = ErrorResponse.__name__ in map(_shape, content.values())
                caching = _STREAM_CACHING if "text/event-stream" in content else _NO_STORE
                response.headers = {"X-Correlation-ID": _CORRELATION_ID, "Cache-Control": caching}
                if is_error and int(status) in _MAY_HAVE_RETRY_AFTER:
                    response.headers["Retry-After"] = _RETRY_AFTER
                if is_error and int(status) == HTTPStatus.UNAUTHORIZED:
                    response.headers["WWW-Authenticate"] = _AUTHENTICATE
                _exemplify(content, int(status), self.operation_id)


def _exemplify(
    content: Mapping[str, OpenAPIMediaType], status: int | None = None, operation: str | None = None
) -> None:
    for media_type in content.values():
        if examples := bodies(_shape(media_type), status, operation):
            media_type.examples = {name: Example(value=_Body(body)) for name, body in examples.items()}


def _shape(media_type: OpenAPIMediaType) -> str:
    return media_type.schema.ref.rpartition("/")[2] if isinstance(media_type.schema, Reference) else ""


@dataclass
class _Body(BaseSchemaObject):
    """A body as it goes over the wire, with its nulls, which Litestar would leave out."""

    body: object

    def to_schema(self) -> dict[str, Any]:
        return dict(msgspec.to_builtins(self.body))


def openapi_config() -> OpenAPIConfig:
    """Return the configuration: a page at /schema, the document at /schema/openapi.json and /schema/openapi.yaml."""
    return OpenAPIConfig(
        title="Parley",
        version=version("parley"),
        summary="A streaming chat API.",
        description=_DESCRIPTION,
        license=License(name="MIT", identifier="MIT"),
        components=Components(
            security_schemes={
                "key": SecurityScheme(
                    type="http", scheme="bearer", description="One of the operator's API keys, if Parley has any."
                )
            }
        ),
        security=[],
        tags=[
            Tag("chat", "Answer messages. Each request runs the model, and costs tokens, even if it is a retry."),
            Tag("info", "Describe what this Parley serves."),
            Tag("health", "Check whether Parley is alive and ready, for orchestrators."),
        ],
        use_handler_docstrings=True,
        openapi_router=docs.router(),
        render_plugins=docs.plugins(),
    )
