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
# What is decoded before the loop gets its turn; most of the work is done per line.
_SLICE_BYTES: Final = 16_384
_LINES_PER_TURN: Final = 400
# What an answer may consist of besides what its tokens explain: thoughts, comments, empty events.
_SPARE_LINES: Final = 500_000
_SPARE_BYTES: Final = 32 << 20
_SPARE_CHARACTERS: Final = 1 << 20
# More than any upstream needs for a token.
_LINES_PER_TOKEN: Final = 20
_BYTES_PER_TOKEN: Final = 4096
_CHARACTERS_PER_TOKEN: Final = 32
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
                    await read(content, run, settings.max_tokens or 0)
        except Exception as error:
            if not run.deltas:
                run.unfinish()
                raise
            failure = error
        run.close(failure)


async def read(content: aiohttp.StreamReader, run: Run, most_tokens: int = 0) -> None:
    """Read an answer of up to `most_tokens` to its end; what one read brings is given to the run as one text.

    Raises:
        ChatError: if it ends without a reason, or is no answer.
    """
    answer = Answer(run, most_tokens)
    try:
        while not answer.is_done:
            if content.total_bytes > answer.bytes:  # so that the read would return without a turn for others
                await asyncio.sleep(0)
            if not (data := await content.readany()):
                break
            if len(data) <= _SLICE_BYTES:
                answer.take(data)
            else:
                await _take(answer, data)
            if run.is_full:
                await run.room()
    except (aiohttp.ClientError, OSError) as error:
        # What had come before is still there, but aiohttp gives it to nobody once the connection has broken.
        await _take(answer, content._read_nowait(-1))  # noqa: SLF001  # there is no public way
        if not answer.is_done:
            raise ChatError(ErrorCode.UPSTREAM_TRUNCATED, detail="The upstream's connection broke.") from error
    answer.check()
    with suppress(TimeoutError, aiohttp.ClientError, OSError):
        # What follows the last event is there at once, or not waited for: then the connection can be used again.
        async with asyncio.timeout(_LAST_BYTES_TIMEOUT_S):
            while await content.readany():
                pass


async def _take(answer: Answer, data: bytes) -> None:
    """Decode many bytes, and let the loop run from time to time."""
    lines = answer.decoder.lines
    for start in range(0, len(data), _SLICE_BYTES):
        answer.take(data[start : start + _SLICE_BYTES])
        if answer.is_done:
            break
        if answer.decoder.lines - lines > _LINES_PER_TURN:
            await asyncio.sleep(0)
            lines = answer.decoder.lines


class Answer:
    """What the upstream says: the truth about the ending is in its own chunks, and nowhere in openai-agents."""

    def __init__(self, run: Run, most_tokens: int) -> None:
        self.is_done = False
        self.bytes = 0
        """The bytes taken so far."""
        self._run = run
        self.decoder = EventDecoder()
        self._is_completion = False
        self._choices = 0
        self._characters = 0
        self._most_lines = _SPARE_LINES + most_tokens * _LINES_PER_TOKEN
        self._most_bytes = _SPARE_BYTES + most_tokens * _BYTES_PER_TOKEN
        self._most_characters = _SPARE_CHARACTERS + most_tokens * _CHARACTERS_PER_TOKEN

    def take(self, data: bytes) -> None:
        """Decode bytes, and note in the run what they say.

        Raises:
            ChatError: if they are no completion's, report a failure, or are too many.
        """
        self.bytes += len(data)
        texts: list[str] = []
        try:
            for payload in self.decoder.feed(data):
                if payload == b"[DONE]":
                    self.is_done = True
                    break
                self._is_completion = True
                self._note(decode_chunk(payload), texts)
        except WIRE_ERRORS as error:
            detail = "The upstream sent something that is not a completion."
            raise ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail) from error
        finally:
            if texts:
                text = "".join(texts)
                self._characters += len(text)
                self._run.add(text, len(texts))
        if (
            self.decoder.lines + self._choices > self._most_lines
            or self.bytes > self._most_bytes
            or self._characters > self._most_characters
        ):
            detail = "The upstream sent far more than the tokens that were asked for."
            raise ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail, retryable=False)

    def check(self) -> None:
        """Check that what was taken was a whole answer.

        Raises:
            ChatError: where it was none.
        """
        if not self._is_completion:
            raise ChatError(ErrorCode.UPSTREAM_ERROR, detail="The upstream answered with something else than a stream.")
        if self._run.finish_reason is None:
            raise ChatError(ErrorCode.UPSTREAM_TRUNCATED)

    def _note(self, chunk: Chunk, texts: list[str]) -> None:
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
            return
        self._choices += len(chunk.choices)
        for choice in chunk.choices:
            if choice.index:  # another answer, which was not asked for
                continue
            text = (choice.delta.content or choice.delta.refusal) if choice.delta else None
            if text:
                texts.append(text)
                if self._run.finish_reason is not None:
                    self._run.unfinish()
            if choice.finish_reason:
                has_text = bool(texts) or bool(self._run.deltas)
                self._run.finish(named_finish(choice.finish_reason), is_last_word=has_text and not text)


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
