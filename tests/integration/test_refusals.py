"""Requests that Parley itself refuses: error, correlation ID and log line, and no request to the upstream."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from parley.chat.errors import ErrorCode
from parley.wire.schema import MAX_BODY_BYTES
from tests.support.canaries import CANARY
from tests.support.running import problem, running, sending

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from parley.settings import Settings
    from parley.testing.upstream import ScriptedUpstream
    from tests.support.logs import Logs

JSON = {"Content-Type": "application/json"}
PATHS = ["/chat", "/chat/complete"]

BODIES: dict[str, tuple[bytes, str]] = {
    "bad JSON": (b'{"message": "' + CANARY.encode(), "JSON is malformed"),
    "no body": (b"", "The body is empty."),
    "invalid UTF-8": (b'{"message": "\xff\xfe"}', "The body is not UTF-8."),
    "an encoding that is not UTF-8": (json.dumps({"message": CANARY}).encode("utf-16"), "JSON is malformed"),
    "a lone surrogate": (rb'{"message": "\ud800"}', "JSON is malformed"),
    "5,000 nested arrays": (
        b'{"message": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        "`/message` must be a string, not an array.",
    ),
    "5,000 nested arrays in an unknown field": (
        b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        "The body must not have a field `x`.",
    ),
    "5,000 nested arrays alone": (b"[" * 5000 + b"]" * 5000, "The body must be an object, not an array."),
    "an array": (b"[1]", "The body must be an object, not an array."),
    "a field that is missing": (b"{}", "`/message` is missing."),
}


def _fields(**fields: Any) -> bytes:
    return json.dumps({"message": "Hi", **fields}).encode()


FIELDS: dict[str, tuple[bytes, str]] = {
    "an unknown field": (_fields(colour="red"), "The body must not have a field `colour`."),
    "an unknown field that quotes the message": (
        _fields(**{CANARY + " ": 1}),
        "The body must not have a field that the contract does not list.",
    ),
    "a blank message": (_fields(message=" \n\t "), "`/message` must not be blank, nor hold a NUL character."),
    "an empty message": (_fields(message=""), "`/message` must have at least 1 character."),
    "a NUL": (_fields(message="a\0b"), "`/message` must not be blank, nor hold a NUL character."),
    "a message too long": (_fields(message="x" * 32_001), "`/message` must have at most 32,000 characters."),
    "a number for a message": (_fields(message=5), "`/message` must be a string, not a whole number."),
    "text for a number": (_fields(max_output_tokens="5"), "`/max_output_tokens` must be a whole number, not a string."),
    "no tokens": (_fields(max_output_tokens=0), "`/max_output_tokens` must be at least 1."),
    "more tokens than allowed": (_fields(max_output_tokens=2001), "`/max_output_tokens` must be at most 2,000."),
    "no time": (_fields(timeout_s=0), "`/timeout_s` must be more than 0."),
    "more time than allowed": (_fields(timeout_s=31), "`/timeout_s` must be at most 30."),
    "null for the message": (_fields(message=None), "`/message` must be a string, not null."),
    "null for a turn": (_fields(history=[None]), "`/history/0` must be an object, not null."),
    "text for turns": (_fields(history="Hi"), "`/history` must be an array, not a string."),
    "text for a time": (_fields(timeout_s="5"), "`/timeout_s` must be a number, not a string."),
    "a number for a choice": (_fields(include_reasoning=1), "`/include_reasoning` must be true or false, not a whole"),
    "too many turns": (
        _fields(history=[{"role": "user", "content": "Hi"}] * 201),
        "`/history` must have at most 200 items.",
    ),
    "a turn of another role": (
        _fields(history=[{"role": CANARY, "content": "Hi"}]),
        "`/history/0/role` must be one of `assistant`, `user`.",
    ),
    "a turn with a field more": (
        _fields(history=[{"role": "user", "content": "Hi", "name": "x"}]),
        "`/history/0` must not have a field `name`.",
    ),
    "a turn with a NUL": (
        _fields(history=[{"role": "user", "content": "a\0b"}]),
        "`/history/0/content` must not hold a NUL character.",
    ),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("body", "detail"), (BODIES | FIELDS).values(), ids=(BODIES | FIELDS).keys())
async def test_a_wrong_body_is_an_invalid_request(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs, path: str, body: bytes, detail: str
) -> None:
    """The detail says what is wrong and where, and quotes no value."""
    response = await client.post(path, content=body, headers=JSON)

    assert response.status_code == 400
    error = problem(response)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert detail in error.detail
    assert not error.retryable
    assert upstream.exchanges == []
    line = await logs.line()
    assert (line["outcome"], line["status"], line["error_code"]) == ("failed", 400, "invalid_request")
    assert (line["level"], line["route"], line["correlation_id"]) == ("info", path, error.correlation_id)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "application/msgpack", ""])
async def test_another_media_type_is_unsupported(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str, media_type: str
) -> None:
    """The body itself is valid JSON."""
    response = await client.post(path, content=_fields(), headers={"Content-Type": media_type})
    assert response.status_code == 415
    assert problem(response).code is ErrorCode.UNSUPPORTED_MEDIA_TYPE
    assert upstream.exchanges == []


async def test_the_charset_may_be_named(client: httpx.AsyncClient) -> None:
    """Many clients name it."""
    response = await client.post("/chat", content=_fields(), headers={"Content-Type": "application/json;charset=UTF-8"})
    assert response.status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_body_of_40_mb_is_too_large(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str, *, is_announced: bool
) -> None:
    """A body with a Content-Length is refused unread; a chunked body is refused once it passes the limit."""
    body = _fields(message=CANARY * 2_500_000)
    pieces = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]

    async def chunks() -> Any:
        for piece in pieces:
            yield piece

    response = await client.post(path, content=body if is_announced else chunks(), headers=JSON)
    assert response.status_code == 413
    assert problem(response).code is ErrorCode.PAYLOAD_TOO_LARGE
    assert upstream.exchanges == []


async def test_a_body_of_just_the_limit_is_read(client: httpx.AsyncClient) -> None:
    """The message is too long, so that the status is 400 and not 413."""
    body = _fields(message="x" * (MAX_BODY_BYTES - len(_fields(message=""))))
    assert len(body) == MAX_BODY_BYTES
    response = await client.post("/chat", content=body, headers=JSON)
    assert response.status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/chat", {"POST", "OPTIONS"}),
        ("PUT", "/chat", {"POST", "OPTIONS"}),
        ("GET", "/chat/complete", {"POST", "OPTIONS"}),
        ("POST", "/health/live", {"GET", "OPTIONS"}),
    ],
)
async def test_another_method_is_not_allowed(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs, method: str, path: str, allowed: set[str]
) -> None:
    """The `Allow` header lists the allowed methods."""
    response = await client.request(method, path)
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == allowed
    assert problem(response).code is ErrorCode.METHOD_NOT_ALLOWED
    assert upstream.exchanges == []
    if path.startswith("/chat"):
        assert (await logs.line())["status"] == 405


async def test_a_method_that_does_not_exist_is_not_logged(client: httpx.AsyncClient, logs: Logs) -> None:
    """The method is the caller's text."""
    response = await client.request(CANARY, "/chat")
    assert response.status_code == 405
    assert (await logs.line())["method"] == "other"


async def test_an_unknown_path_beside_the_contract_is_not_found(client: httpx.AsyncClient) -> None:
    """Litestar would show its own web page there."""
    response = await client.get("/schema/nothing")
    assert response.status_code == 404
    assert problem(response).code is ErrorCode.NOT_FOUND


@pytest.mark.parametrize("path", ["/", "/nothing", f"/{CANARY}", "/chat/x", "/%00"])
async def test_an_unknown_path_is_not_found(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs, path: str
) -> None:
    """The path is the caller's text and is not logged."""
    response = await client.post(path, content=_fields(), headers=JSON)
    assert response.status_code == 404
    assert problem(response).code is ErrorCode.NOT_FOUND
    assert upstream.exchanges == []
    line = await logs.line()
    assert (line["route"], line["status"], line["error_code"]) == (None, 404, "not_found")


@pytest.mark.parametrize("given", ["a", "A-b_c.9", "x" * 128])
async def test_a_callers_correlation_id_is_kept(client: httpx.AsyncClient, logs: Logs, given: str) -> None:
    """The ID is in the response's header, in its body and in the log."""
    response = await client.post("/chat", json={}, headers={"X-Correlation-ID": given})
    assert problem(response).correlation_id == given
    assert (await logs.line())["correlation_id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "\xe4", CANARY + "!"])
async def test_a_correlation_id_that_could_do_harm_is_replaced(
    client: httpx.AsyncClient, logs: Logs, given: str
) -> None:
    """Parley prints the ID in headers, bodies and log lines."""
    response = await client.post("/chat", json={}, headers=[(b"X-Correlation-ID", given.encode("latin-1"))])
    error = problem(response)
    assert error.correlation_id not in {given, ""}
    assert len(error.correlation_id) == 32
    assert (await logs.line())["correlation_id"] == error.correlation_id


async def test_two_requests_get_two_correlation_ids(client: httpx.AsyncClient) -> None:
    """The two requests may share a connection."""
    first, second = [problem(await client.post("/chat", json={})).correlation_id for _ in range(2)]
    assert first != second


@pytest.mark.parametrize("path", PATHS)
async def test_all_that_is_allowed_may_be_asked_for(client: httpx.AsyncClient, path: str) -> None:
    """Values equal to the maximum are accepted."""
    request = {"message": "x" * 32_000, "max_output_tokens": 2000, "timeout_s": 30}
    assert (await client.post(path, json=request)).status_code == 200


async def test_unfinished_requests_hold_little_memory_together(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream
) -> None:
    """Requests beyond the limit get the overload error; when the others have gone, Parley serves as before."""
    head = b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    async with running(make_settings(read_timeout_s=3600)) as client:
        async with AsyncExitStack() as stack:
            begun = [await stack.enter_async_context(sending(client, head + b" " * 999_000)) for _ in range(36)]
            lines = [asyncio.create_task(reader.readline()) for reader, _ in begun]
            answered, waiting = await asyncio.wait(lines, return_when=asyncio.FIRST_COMPLETED)
            assert {task.result() for task in answered} == {b"HTTP/1.1 503 Service Unavailable\r\n"}
            assert len(waiting) >= 30
            for task in waiting:
                task.cancel()
        assert (await client.post("/chat", json={"message": "Hi"})).status_code == 200
    assert len(upstream.exchanges) == 1
