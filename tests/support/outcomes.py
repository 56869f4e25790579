"""The outcome of a request, read from either operation, and its differences from what a wire case expects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import msgspec

from parley.wire.schema import ChatResponse
from tests.support.canaries import CANARY
from tests.support.running import problem, read_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from tests.support.wire_cases import Expected


class Outcome(NamedTuple):
    """The outcome of a request."""

    ending: str
    """`done` with the finish reason, or `error` with the code."""
    text: str | None = None
    """`None` if the response has no text, as in an HTTP error."""
    reasoning: str | None = None
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


async def ask(client: httpx.AsyncClient, path: str, **more: object) -> Outcome:
    """Send a message, and return the outcome; this also checks the shape of the response."""
    with anyio.fail_after(120):
        response = await client.post(path, json={"message": CANARY, **more})
    if response.status_code != 200:
        error = msgspec.to_builtins(problem(response))
        return Outcome(f"error {error['code']}", error=error)
    if path == "/chat/complete":
        answer = response.json()
        assert msgspec.json.decode(response.content, type=ChatResponse)
        return Outcome(f"done {answer['finish_reason']}", answer["text"], answer.get("reasoning"), answer["usage"])
    return of_chunks([msgspec.to_builtins(chunk) for chunk in read_chunks(response.content)])


def of_chunks(chunks: list[dict[str, Any]]) -> Outcome:
    """Return the outcome of a complete stream, after checks that hold for every stream."""
    *begun, last = chunks
    assert [chunk["seq"] for chunk in chunks] == list(range(len(chunks)))
    assert [chunk["type"] for chunk in begun[:1]] in (["start"], []), chunks
    assert {chunk["type"] for chunk in begun[1:]} <= {"reasoning", "text"}, chunks
    text = "".join(chunk["text"] for chunk in begun[1:] if chunk["type"] == "text")
    reasoning = "".join(chunk["text"] for chunk in begun[1:] if chunk["type"] == "reasoning")
    if last["type"] == "error":
        return Outcome(f"error {last['error']['code']}", text, reasoning, last["usage"], last["error"])
    assert [begun[0]["type"], last["type"]] == ["start", "done"], chunks
    return Outcome(f"done {last['finish_reason']}", text, reasoning, last["usage"])


def differing(expected: Expected, outcome: Outcome, tries: int) -> Iterator[str]:
    """Yield each difference from what is expected."""
    endings = [f"done {one}" for one in listed(expected.done)] + [f"error {one}" for one in listed(expected.error)]
    if outcome.ending not in endings:
        yield f"{outcome.ending} instead of {' or '.join(endings)}"
        return
    is_done = outcome.error is None
    wanted = expected.whole_text if is_done else expected.text
    if outcome.text is not None and wanted not in {None, "*", outcome.text}:
        yield f"text {outcome.text!r} instead of {wanted!r}"
    if is_done and not any(is_usage(outcome.usage or {}, one) for one in listed(expected.usage)):
        yield f"usage {outcome.usage} instead of {expected.usage}"
    if tries not in (listed(expected.tries) or [tries]):
        yield f"{tries} tries instead of {expected.tries}"
    if outcome.error is not None:
        if expected.retryable not in {None, outcome.error["retryable"]}:
            yield f"retryable {outcome.error['retryable']}"
        wait_s = outcome.error["retry_after_s"]
        if expected.retry_after_s is not msgspec.UNSET and wait_s not in listed(expected.retry_after_s):
            yield f"retry_after_s {wait_s} instead of {expected.retry_after_s}"
        if expected.detail not in outcome.error["detail"]:
            yield f"detail without {expected.detail!r}: {outcome.error['detail']}"


def listed(value: object) -> list[Any]:
    """Return a value, or its alternatives, as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def is_usage(usage: dict[str, Any], expected: str) -> bool:
    """Return whether the usage matches a notation such as `9/4/13 cached=5`."""
    if expected in {"*", "none"}:
        return expected == "*" or usage["source"] != "upstream"
    counts, *parts = expected.split(" ")
    names = {"cached": "cached_input_tokens", "reasoning": "reasoning_tokens"}
    wanted = dict(zip(("input_tokens", "output_tokens", "total_tokens"), counts.split("/"), strict=True))
    wanted |= {names[name]: value for name, value in (part.split("=") for part in parts)}
    found = {name: msgspec.json.encode(usage.get(name, "no such field")).decode() for name in wanted}
    return usage["source"] == "upstream" and all(value in {"*", found[name]} for name, value in wanted.items())
