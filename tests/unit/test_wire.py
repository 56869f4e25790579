"""The two ends of server-sent events: Parley's decoder for the upstream, and its encoder for the client."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, get_args

import httpx
import httpx_sse
import msgspec
import pytest
import sseclient
from hypothesis import example, given
from hypothesis import strategies as st

from parley.providers import lenient
from parley.providers.stream_decoding import MAX_EVENT_BYTES, EventDecoder, EventTooLargeError, decode_chunk
from parley.testing.factories import DoneChunkFactory, ErrorChunkFactory, StartChunkFactory, stream_of
from parley.wire.encoding import encode_frame, encode_json
from parley.wire.schema import ChatRequest, StreamChunk, TextChunk

if TYPE_CHECKING:
    from collections.abc import Iterator

# Every line ending, and characters that are awkward in JSON, UTF-8 or an event stream.
AWKWARD = 'a\r\n\r\rb\n\nc\u2028d\u2029e\x85f\x0b\x0c\x1c\x1d\x1e data: x\nevent: y\n: z\ufeff\x00"\\\U0001f389é'
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def cut(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """Split the bytes at these positions."""
    edges = [0, *sorted(place % (len(data) + 1) for place in cuts), len(data)]
    return (data[start:end] for start, end in pairwise(edges))


def read_with_httpx_sse(pieces: Iterator[bytes]) -> list[tuple[str, str]]:
    """Read events with httpx-sse, the parser that Parley's Python users have."""
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=pieces)
    return [(event.event, event.data) for event in httpx_sse.EventSource(response).iter_sse()]


def read_with_sseclient(pieces: Iterator[bytes]) -> list[tuple[str, str]]:
    """Read events with an independent parser that works differently."""
    return [(event.event, event.data) for event in sseclient.SSEClient(pieces).events()]


@given(texts=st.lists(TEXTS, max_size=5), cuts=st.lists(st.integers(min_value=0), max_size=20))
@example(texts=[AWKWARD], cuts=[])
@example(texts=[AWKWARD, AWKWARD], cuts=list(range(1000)))
@pytest.mark.parametrize("read", [read_with_httpx_sse, read_with_sseclient])
def test_any_text_arrives_as_it_was_sent_wherever_it_is_cut(read: object, texts: list[str], cuts: list[int]) -> None:
    """Whole streams are read by two parsers that share no code."""
    assert callable(read)
    chunks = stream_of(*texts)
    frames = b"".join(encode_frame(chunk) for chunk in chunks)
    events = read(cut(frames, cuts))
    assert [msgspec.json.decode(data, type=StreamChunk) for _, data in events] == chunks
    assert [kind for kind, _ in events] == [json.loads(data)["type"] for _, data in events]


@pytest.mark.parametrize("factory", [StartChunkFactory, DoneChunkFactory, ErrorChunkFactory])
def test_a_frame_is_an_event_line_a_data_line_and_a_blank_one(
    factory: type[StartChunkFactory | DoneChunkFactory | ErrorChunkFactory],
) -> None:
    """Lines end with LF, and there is no `id` line."""
    frame = encode_frame(factory.build())
    event, data, *rest = frame.split(b"\n")
    assert rest == [b"", b""]
    assert event == b"event: " + json.loads(data.removeprefix(b"data: "))["type"].encode()
    assert b"\r" not in frame


def test_the_frame_of_a_text_is_just_so() -> None:
    """The bytes are those that the documentation shows."""
    frame = encode_frame(TextChunk(seq=1, text="Hel"))
    assert frame == b'event: text\ndata: {"type":"text","seq":1,"text":"Hel"}\n\n'


@given(text=st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from(AWKWARD)))
def test_no_text_breaks_a_line_for_any_client(text: str) -> None:
    """Python's `splitlines`, which httpx and requests follow, splits at more characters than the standard does."""
    _, data, blank = encode_frame(TextChunk(seq=1, text=text)).decode().splitlines()
    assert (json.loads(data.removeprefix("data: "))["text"], blank) == (text, "")


def test_what_is_no_line_end_is_not_escaped() -> None:
    """An escape would take more bytes and more time."""
    assert encode_json(["é 東 \u2027\u202a\x86\U0001f389"]) == '["é 東 \u2027\u202a\x86\U0001f389"]'.encode()
    assert encode_json("\x85\u2028\u2029") == rb'"\u0085\u2028\u2029"'


PAYLOADS = st.lists(st.binary(max_size=30).filter(lambda data: not {*b"\r\n"} & {*data}), max_size=5)


@given(payloads=PAYLOADS, cuts=st.lists(st.integers(min_value=0), max_size=30), end=st.sampled_from([b"\n", b"\r\n"]))
def test_the_decoder_finds_each_event_wherever_the_bytes_are_cut(
    payloads: list[bytes], cuts: list[int], end: bytes
) -> None:
    """Comments, and fields other than `data`, are ignored."""
    data = b"".join(
        b": ping" + end + end + b"event: x" + end + b"data: " + payload + end + b"id: 1" + end + end
        for payload in payloads
    )
    decoder = EventDecoder()
    assert [payload for piece in cut(data, cuts) for payload in decoder.feed(piece)] == payloads


def test_several_data_lines_are_one_event() -> None:
    """The lines are joined by LF, as the standard says; the blank after the colon is optional."""
    assert EventDecoder().feed(b"data:{\ndata: }\n\n") == [b"{\n}"]


def test_an_event_that_is_not_ended_is_none() -> None:
    """The event may be incomplete."""
    assert EventDecoder().feed(b"data: {}\n") == []


def test_a_line_without_end_is_given_up() -> None:
    """Otherwise the line would use up all memory."""
    decoder = EventDecoder()
    decoder.feed(b"x" * MAX_EVENT_BYTES)
    with pytest.raises(EventTooLargeError):
        decoder.feed(b"x")


def test_an_event_of_endless_lines_is_given_up() -> None:
    """Each line ends, but the event does not."""
    decoder = EventDecoder()
    lines = [b"data: " + b"x" * 1000 + b"\n"] * (MAX_EVENT_BYTES // 1000 + 2)
    with pytest.raises(EventTooLargeError):
        list(map(decoder.feed, lines))


def test_an_event_of_endless_empty_lines_is_given_up() -> None:
    """Empty lines hold no data, but the decoder keeps each of them."""
    decoder = EventDecoder()
    with pytest.raises(EventTooLargeError):
        list(map(decoder.feed, [b"data:\n" * 10_000] * 100))


def test_a_byte_order_mark_is_passed_over() -> None:
    """The mark is ignored only before the first line, wherever the bytes are split."""
    decoder = EventDecoder()
    pieces = cut(b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [1, 2, 3])
    assert [payload for piece in pieces for payload in decoder.feed(piece)] == [b"a"]


def test_a_long_line_costs_no_more_for_coming_in_small_pieces() -> None:
    """Earlier bytes are not copied or searched again: a quadratic decoder would need minutes here."""
    decoder = EventDecoder()
    decoder.feed(b"data: ")
    for _ in range(MAX_EVENT_BYTES // 2):
        decoder.feed(b"x")
    assert decoder.feed(b"\n\n") == [b"x" * (MAX_EVENT_BYTES // 2)]


@pytest.mark.parametrize("value", ["{}", "[]", '""', "0", "1e300", '{"text":""}', '{"content":[]}'])
@pytest.mark.parametrize("place", ['{"choices":[{"delta":{"content":[%s]}}]}', '{"choices":[],"x":[NaN,%s]}'])
def test_an_event_of_far_too_many_values_is_given_up_before_it_is_read(place: str, value: str) -> None:
    """Each value would become a Python object, and decoding would block the event loop."""
    with pytest.raises(EventTooLargeError):
        lenient.decode_chunk((place % ",".join([value] * 100_001)).encode())


def test_what_a_chunk_holds_beyond_what_is_read_does_not_matter() -> None:
    """Servers add other fields to their chunks."""
    chunk = decode_chunk(b'{"id":"x","choices":[{"delta":{"content":"a","tool_calls":[1]},"logprobs":{}}],"x":[[]]}')
    assert chunk.choices is not None
    assert chunk.choices[0].delta is not None
    assert chunk.choices[0].delta.content == "a"


def test_no_kind_of_chunk_comes_to_who_does_not_ask_for_it() -> None:
    """A field that requests a kind of chunk is off unless the client sets it."""
    fields = {field for kind in get_args(StreamChunk) if (field := getattr(kind, "requested_by", None))}
    assert fields == {"include_reasoning"}
    assert not any(getattr(ChatRequest(message="Hi"), field) for field in fields)
