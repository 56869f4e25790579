"""The tool calls of an answer: how upstreams split them into chunks, and how large they may become."""

from __future__ import annotations

from typing import Any

import pytest

from parley.chat.errors import ErrorCode
from parley.providers.answer import Answer
from parley.testing.faults import sse
from parley.testing.upstream import delta
from tests.support.attempts import new_attempt
from tests.support.scripts import tool_calls

DONE = delta(finish_reason="tool_calls")
PARIS, ROME = '{"city": "Paris"}', '{"city": "Rome"}'


def piece(name: str | None = None, arguments: object = None, **more: Any) -> dict[str, Any]:
    """Return a piece of a tool call."""
    return {**more, "function": {"name": name, "arguments": arguments}}


def taken(*payloads: object) -> Answer:
    """Return an answer that has read these payloads."""
    answer = Answer(new_attempt(), 100, has_tools=True)
    answer.take(sse(*payloads, DONE))
    return answer


def called(*payloads: object) -> list[tuple[str, str]]:
    """Return the name and the arguments of each tool call of an answer."""
    answer = taken(*payloads)
    assert answer.failure is None
    assert answer.check() is None
    assert answer.tool_calls is not None
    calls = answer.tool_calls.joined(known=())
    assert len({call.id for call in calls}) == len(calls)
    return [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize(
    "pieces",
    [
        [piece("weather", "", index=0, id="a"), *(piece(arguments=c, index=0) for c in PARIS)],
        [piece("weather", "", id="a"), *(piece(arguments=c) for c in PARIS)],  # no index
        [piece("weather", c, index=0, id="a") for c in PARIS],  # index, id and name repeated
        [piece("weather", c, index=0) for c in PARIS],  # no id
        [piece("weather", c, id="a") for c in PARIS],  # id, no index
        [piece("weather", PARIS)],  # neither index nor id
        [piece("wea", ""), piece("ther", PARIS)],  # a name in pieces
        [piece("weather", None, index=0, id="a"), piece(None, PARIS, index=0, id="")],
        [piece("weather", PARIS, index=7, id="a")],  # an odd index
        [piece("weather", PARIS, index="0", id="a")],  # an index as text
        [piece("weather", {"city": "Paris"}, id="a")],  # an object instead of a string
        [piece("weather", PARIS, id=7), {"id": 7, "function": None}],  # an odd id
    ],
)
def test_one_call_is_one_call_however_it_is_cut(pieces: list[dict[str, Any]]) -> None:
    """The pieces are as OpenAI sends them, and as more lenient servers do."""
    assert called(*(tool_calls(piece) for piece in pieces)) == [("weather", PARIS)]


@pytest.mark.parametrize(
    "pieces",
    [
        [piece("weather", PARIS, index=0, id="a"), piece("weather", ROME, index=1, id="b")],
        [piece("weather", PARIS, id="a"), piece("weather", ROME, id="b")],  # no index
        [
            piece("weather", PARIS, index=0, id="a"),
            piece("weather", ROME, index=0, id="b"),
        ],  # always index 0, as Gemini sends it
        [piece("weather", PARIS, index=0, id="a"), piece("weather", ROME, index=1, id="a")],  # the same id
        [piece("weather", PARIS, index=0), piece("weather", ROME, index=1)],  # no id
        [piece("weather", PARIS, index=1), piece("weather", ROME, index=0)],
    ],
)
def test_two_calls_are_two_calls_whatever_tells_them_apart(pieces: list[dict[str, Any]]) -> None:
    """The calls may be in one chunk or in two; each gets its own ID."""
    expected = [("weather", PARIS), ("weather", ROME)]
    assert called(*(tool_calls(piece) for piece in pieces)) == expected
    assert called(tool_calls(*pieces)) == expected


def test_two_calls_without_index_or_id_are_told_apart_by_their_places() -> None:
    """This works if both calls are in one chunk."""
    pieces = [piece("weather", PARIS), piece("weather", ROME)]
    assert called(tool_calls(*pieces)) == [("weather", PARIS), ("weather", ROME)]


@pytest.mark.parametrize(
    "payload",
    [
        tool_calls(*(piece("weather", PARIS, index=number) for number in range(10_000))),
        tool_calls(*(piece("weather", PARIS, id=str(number)) for number in range(10_000))),
    ],
)
def test_more_calls_than_anybody_needs_are_refused(payload: object) -> None:
    """Otherwise every call would be run."""
    assert taken(payload).failure is not None


def test_arguments_without_end_are_refused() -> None:
    """Parley holds arguments in memory until the call is complete."""
    answer = taken(*[tool_calls(piece("weather", "x" * 500_000, index=0))] * 20)
    assert answer.failure is not None
    assert answer.failure.code is ErrorCode.UPSTREAM_ERROR
    assert not answer.failure.explanation.retryable


def test_pieces_that_hold_nothing_are_counted_too() -> None:
    """Otherwise an upstream could send a million of them at a few bytes each."""
    answer = Answer(new_attempt(), 100, has_tools=True)
    body = sse('{"choices":[{"delta":{"tool_calls":[' + ",".join(["{}"] * 300_000) + "]}}]}")
    answer.take(body)
    assert answer.failure is not None

    answer = Answer(new_attempt(), 100, has_tools=True)
    body = sse(*[tool_calls(*[{}] * 100)] * 100)
    while answer.failure is None:
        answer.take(body)
    assert answer.bytes < 5 << 20


def test_a_whole_message_can_hold_calls() -> None:
    """Some upstreams send a complete message although they were asked to stream."""
    message = {"tool_calls": [piece("weather", PARIS, id="a")]}
    assert called({"choices": [{"message": message}]}) == [("weather", PARIS)]
    both = [tool_calls(piece("weather", PARIS, index=0, id="a")), {"choices": [{"message": message}]}]
    assert called(*both) == [("weather", PARIS)]
