"""Owns what a consumer's tests need: factories for the shapes on the wire, and their fixtures.

Load it as a pytest plugin with `pytest_plugins = ["parley.testing"]`; it wants the extra `parley[testing]`. Each
factory has a fixture of its own name, such as `chat_request_factory`.
"""

import msgspec
from polyfactory import Use
from polyfactory.factories.msgspec_factory import MsgspecFactory
from polyfactory.pytest_plugin import register_fixture

from parley.chat.events import FinishReason
from parley.web.schema import (
    ChatRequest,
    ChatResponse,
    DoneChunk,
    ErrorChunk,
    ErrorResponse,
    HistoryTurn,
    StartChunk,
    StreamChunk,
    TextChunk,
)


def _sentence() -> str:
    return MsgspecFactory.__faker__.sentence()


@register_fixture
class HistoryTurnFactory(MsgspecFactory[HistoryTurn]):
    """Earlier turns."""

    content = Use(_sentence)


@register_fixture
class ChatRequestFactory(MsgspecFactory[ChatRequest]):
    """Requests that a Parley with default settings accepts."""

    message = Use(_sentence)
    history = Use(HistoryTurnFactory.batch, 2)
    max_output_tokens = Use(MsgspecFactory.__random__.randint, 1, 2000)
    timeout_s = Use(MsgspecFactory.__random__.uniform, 1, 30)


@register_fixture
class ChatResponseFactory(MsgspecFactory[ChatResponse]):
    """Whole answers."""

    text = Use(_sentence)


@register_fixture
class ErrorResponseFactory(MsgspecFactory[ErrorResponse]):
    """Failures."""


@register_fixture
class StartChunkFactory(MsgspecFactory[StartChunk]):
    """The chunk that begins a stream."""

    seq = 0


@register_fixture
class TextChunkFactory(MsgspecFactory[TextChunk]):
    """Pieces of an answer."""

    text = Use(_sentence)


@register_fixture
class DoneChunkFactory(MsgspecFactory[DoneChunk]):
    """The chunk that ends an answer."""


@register_fixture
class ErrorChunkFactory(MsgspecFactory[ErrorChunk]):
    """The chunk that ends a broken answer."""


def stream_of(*texts: str, ended_by: DoneChunk | ErrorChunk | None = None) -> list[StreamChunk]:
    """Return the chunks of a whole stream, numbered as Parley numbers them."""
    last = ended_by or DoneChunkFactory.build(finish_reason=FinishReason.STOP)
    chunks: list[StreamChunk] = [StartChunkFactory.build()]
    chunks += [TextChunkFactory.build(seq=number, text=text) for number, text in enumerate(texts, start=1)]
    return [*chunks, msgspec.structs.replace(last, seq=len(chunks))]
