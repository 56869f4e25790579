"""Owns one run's model: asks, reads the answer from the upstream's own bytes, and notes in the run how it ends."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from agents import Model, ModelResponse
from openai.types.responses import Response, ResponseCompletedEvent, ResponseOutputMessage

from parley.chat.errors import ChatError, ErrorCode
from parley.providers.answer import Answer

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
# What is decoded before the loop gets its turn. Most of the work is done per line, so lines that are shorter than those
# of any honest upstream come in smaller slices.
_SLICE_BYTES: Final = 16_384
_SHORT_LINES_SLICE_BYTES: Final = 4096
_SHORT_LINE_BYTES: Final = 32
_LINES_PER_TURN: Final = 400
# After a smaller read, aiohttp has nothing more: it stops parsing at 1,024 chunks, and goes on at half of them.
_SMALL_READ_BYTES: Final = 500


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
            ChatError: if it fails before the first text; a later failure closes the run.
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
                run.retract_finish()
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
        while not answer.is_done and (data := await content.readany()):
            if len(data) <= _SLICE_BYTES:
                answer.take(data)
            else:
                await _take(answer, data)
            if len(data) > _SMALL_READ_BYTES and content.total_bytes > answer.bytes:  # the next read would not wait
                await asyncio.sleep(0)
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
            while await content.readany():  # noqa: ASYNC110  # it reads what it waits for
                await asyncio.sleep(0)


async def _take(answer: Answer, data: bytes) -> None:
    """Decode many bytes, and let the loop run from time to time."""
    has_short_lines = data.count(b"\n") > len(data) // _SHORT_LINE_BYTES
    size = _SHORT_LINES_SLICE_BYTES if has_short_lines else _SLICE_BYTES
    lines = answer.decoder.lines
    for start in range(0, len(data), size):
        answer.take(data[start : start + size])
        if answer.is_done:
            break
        if answer.decoder.lines - lines > _LINES_PER_TURN:
            await asyncio.sleep(0)
            lines = answer.decoder.lines


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
