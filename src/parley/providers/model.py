"""Owns one run's model: asks, reads the answer from the upstream's own bytes, and notes in the run how it ends."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec
from agents import Model, ModelResponse
from openai.types.responses import Response, ResponseCompletedEvent, ResponseOutputMessage

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import Usage, UsageSource
from parley.providers.failures import ReportedError, named_finish
from parley.providers.wire import WIRE_ERRORS, Chunk, EventDecoder, decode_chunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from typing import Protocol

    from agents import ModelSettings, TResponseInputItem, TResponseStreamEvent

    from parley.chat.run import Run

    class Ask(Protocol):
        """Sends a request upstream; yields what the answer is read from."""

        def __call__(
            self, instructions: str | None, turns: Any, settings: ModelSettings, headers: Mapping[str, str]
        ) -> AbstractAsyncContextManager[aiohttp.StreamReader]:
            """Ask."""

    # Follows an attempt, and says with which headers to ask.
    Asking = Callable[[ModelSettings, Run], AbstractContextManager[Mapping[str, str]]]


_LAST_BYTES_TIMEOUT_S: Final = 0.1
# An upstream's count above this, or below 0, is none: nobody who adds counts up, as metrics and quotas do, expects it.
_LARGEST_COUNT: Final = 1 << 53


class UpstreamModel(Model):
    """Gives its text to the run; openai-agents asks, and asks again where it fails before any text."""

    def __init__(self, ask: Ask, asking: Asking, run: Run) -> None:
        self._ask = ask
        self._asking = asking
        self._run = run

    async def get_response(self, *_: Any, **__: Any) -> ModelResponse:
        """Refuse: Parley only streams."""
        raise NotImplementedError

    async def stream_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],  # noqa: A002  # named by openai-agents
        model_settings: ModelSettings,
        *_: Any,
        **__: Any,
    ) -> AsyncIterator[TResponseStreamEvent]:
        """Ask, and yield one completed event with the first text; the answer is read on without openai-agents.

        Raises:
            ChatError: where it fails before the first text; a later failure closes the run.
        """
        self._run.begin()
        await self._run.read(self._answer(system_instructions, input, model_settings))
        yield completed()

    async def _answer(self, instructions: str | None, turns: Any, settings: ModelSettings) -> None:
        run = self._run
        failure = None
        try:
            with self._asking(settings, run) as headers:
                async with run.deadlines(), self._ask(instructions, turns, settings, headers) as content:
                    run.is_answered = True
                    await read(content, run)
        except Exception as error:
            if not run.deltas and run.finish_reason is None:
                raise
            failure = error
        run.close(failure)


async def read(content: aiohttp.StreamReader, run: Run) -> None:
    """Read an answer to its end; what has come by then is given to the run at once, as one text.

    Raises:
        ChatError: where it ends without a reason, or is none.
    """
    answer = Answer(run)
    try:
        while not answer.is_done and (data := await content.readany()):
            answer.take(data)
            if run.is_full:
                await run.room()
    except (aiohttp.ClientError, OSError) as error:
        # What had come before is still there, but aiohttp gives it to nobody once the connection has broken.
        answer.take(content._read_nowait(-1))  # noqa: SLF001  # there is no public way
        if not answer.is_done:
            raise ChatError(ErrorCode.UPSTREAM_TRUNCATED, detail="The upstream's connection broke.") from error
    answer.check()
    with suppress(TimeoutError, aiohttp.ClientError, OSError):
        # What follows the last event is there at once, or not waited for: then the connection can be used again.
        async with asyncio.timeout(_LAST_BYTES_TIMEOUT_S):
            while await content.readany():
                pass


class Answer:
    """What the upstream says: the truth about the ending is in its own chunks, and nowhere in openai-agents."""

    def __init__(self, run: Run) -> None:
        self.is_done = False
        self._run = run
        self._decoder = EventDecoder()
        self._is_completion = False

    def take(self, data: bytes) -> None:
        """Decode bytes, and note in the run what they say.

        Raises:
            ChatError: where they are no completion's, or report a failure.
        """
        texts: list[str] = []
        try:
            for payload in self._decoder.feed(data):
                if payload == b"[DONE]":
                    self.is_done = True
                    break
                self._is_completion = True
                if text := self._note(decode_chunk(payload)):
                    texts.append(text)
        except WIRE_ERRORS as error:
            detail = "The upstream sent something that is not a completion."
            raise ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail) from error
        finally:
            if texts:
                self._run.add("".join(texts), len(texts))

    def check(self) -> None:
        """Check that what was taken was a whole answer.

        Raises:
            ChatError: where it was none.
        """
        if not self._is_completion:
            raise ChatError(ErrorCode.UPSTREAM_ERROR, detail="The upstream answered with something else than a stream.")
        if self._run.finish_reason is None:
            raise ChatError(ErrorCode.UPSTREAM_TRUNCATED)

    def _note(self, chunk: Chunk) -> str | None:
        """Take a chunk's text, and note its finish reason and usage."""
        if (error := bytes(chunk.error)) not in {b"", b"null"}:
            raise ReportedError(b'{"error":%b}' % error)
        if chunk.usage is not None:
            read, written, total = (_sane(count) for count in msgspec.structs.astuple(chunk.usage))
            if (read, written, total) != (None, None, None):
                self._run.usage = Usage(
                    input_tokens=read, output_tokens=written, total_tokens=total, source=UsageSource.UPSTREAM
                )
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        if choice.finish_reason:
            self._run.finish(named_finish(choice.finish_reason))
        return (choice.delta.content or choice.delta.refusal) if choice.delta else None


def _sane(count: int | None) -> int | None:
    return count if count is not None and 0 <= count <= _LARGEST_COUNT else None


@cache
def completed() -> ResponseCompletedEvent:
    """Return the event that ends a run: openai-agents wants one, and nobody reads it. The first costs 60 ms."""
    message = ResponseOutputMessage(id="reply", content=[], role="assistant", status="completed", type="message")
    response = Response(
        id="reply",
        created_at=0,
        model="reply",
        object="response",
        output=[message],
        parallel_tool_calls=False,
        tool_choice="none",
        tools=[],
    )
    return ResponseCompletedEvent(response=response, sequence_number=0, type="response.completed")
