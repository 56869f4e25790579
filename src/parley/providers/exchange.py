"""One exchange with an upstream: a request, and its response, read as text."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec

from parley.chat.errors import ChatError, ErrorCode
from parley.providers.answer import Answer

if TYPE_CHECKING:
    from parley.chat.run import Attempt, Deadlines
    from parley.chat.watch import CallSpan
    from parley.providers.upstream import Upstream

# After a final finish reason, only the usage may follow; some upstreams then send nothing more.
_LAST_WORD_TIMEOUT_S: Final = 5.0
_LAST_BYTES_TIMEOUT_S: Final = 0.1
# Bytes that are decoded before yielding to the event loop. Most of the work is done per line, so the slices are smaller
# if the lines are shorter than those of any honest upstream.
_SLICE_BYTES: Final = 16_384
_SHORT_LINES_SLICE_BYTES: Final = 4096
_SHORT_LINE_BYTES: Final = 32
# After a read of at most this size, aiohttp holds no more data: it stops parsing at 1,024 chunks and resumes at half.
_SMALL_READ_BYTES: Final = 500
# Tokens that arrive together are returned as one text, up to about this size.
_MOST_CHARACTERS: Final = 16_384


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a chat completion, before the upstream's own names and defaults are filled in."""

    messages: list[Any]
    """In the format of the chat completions API, without the system prompt."""
    max_tokens: int
    instructions: str | None = None
    """The system prompt; `None` stands for the upstream's default."""
    temperature: float | None = None
    """`None` stands for the upstream's default."""
    model: str | None = None
    """`None` stands for the upstream's default; a fallback always uses its own."""
    is_reply: bool = True
    """Whether the answer is part of a reply; false if a tool or a guardrail asks."""
    include_reasoning: bool = False
    """Whether the caller wants the model's reasoning."""
    options: dict[str, Any] = {}
    """Other fields of the API, such as `tools`."""


class Exchange:
    """One request to an upstream and its response; the attempt records what is known about them.

    The caller reads the response with `next` in its own task, so Parley does not read from the upstream while the
    client does not read. The caller must call `close` at the end, or `abandon` if another attempt follows.
    """

    def __init__(
        self, upstream: Upstream, request: CompletionRequest, attempt: Attempt, deadlines: Deadlines, call: CallSpan
    ) -> None:
        self.attempt = attempt
        self._upstream = upstream
        self._request = request
        self._deadlines = deadlines
        self._call = call
        self._span = call.attempt(attempt)
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.time()
        self.answer = Answer(
            attempt,
            request.max_tokens,
            has_tools=bool(request.options.get("tools")),
            keeps_thoughts=request.include_reasoning,
        )
        self._response: aiohttp.ClientResponse | None = None
        self._unread = b""
        self._broken: ChatError | None = None
        self._has_more = False
        self._is_over = False

    async def open(self) -> None:
        """Send the request and wait for the response's head; raise `ChatError` if there is none, or it is an error."""
        async with self._deadlines.limit():
            self._response = await self._upstream.post(self._request, self.attempt, self._span.headers)
        self.attempt.is_answered = True
        self.content = self._response.content
        self._deadlines.start(self._interrupt)

    async def next(self) -> str | None:
        """Return the next text, an empty string if only reasoning or a tool call came, or `None` at the answer's end.

        Raises:
            ChatError: if the answer fails; all text that arrived before the failure has been returned.
        """
        answer, attempt, deadlines = self.answer, self.attempt, self._deadlines
        deltas, thoughts = attempt.deltas, attempt.thoughts
        if attempt.is_final:
            deadlines.shorten(_LAST_WORD_TIMEOUT_S)
        elif deltas or thoughts:
            deadlines.renew(has_text=deltas > 0)
        text = ""
        while answer.failure is None and not answer.is_done and not self._is_over:
            if not self._unread and self._broken is None:
                deadlines.is_waiting = True
                try:
                    self._unread = await self.content.readany()
                except (aiohttp.ClientError, OSError, ChatError) as error:
                    self._break(error)
                deadlines.is_waiting = False
            if self._unread:
                text += self._take()
            else:
                self._is_over = True
                text += answer.end() if self._broken is None else ""
            if self._has_more and len(text) < _MOST_CHARACTERS:
                await asyncio.sleep(0)  # yield to the event loop: the next read would not wait
            elif attempt.deltas > deltas or (attempt.thoughts > thoughts and self._request.include_reasoning):
                return text
        if attempt.deltas > deltas:
            return text
        await self._end()
        return None

    def take_thoughts(self) -> str:
        """Return the model's reasoning since the last call; empty unless the request asks for reasoning."""
        thoughts = self.answer.thoughts
        if not thoughts:
            return ""
        taken = "".join(thoughts)
        thoughts.clear()
        return taken

    def close(self, error: BaseException | None) -> None:
        """End the model call; `error` is the exception that ended it, if any."""
        self.abandon(error)
        self._call.end(error)

    def abandon(self, error: BaseException | None) -> None:
        """Close the connection, unless its response was read to the end; `error` is what ended the attempt, if any."""
        self._deadlines.stop()
        if self._response is not None:
            self._response.close()
        self._span.end(error)

    def _take(self) -> str:
        """Decode some of the bytes that have been read, and return their text."""
        data, attempt, answer = self._unread, self.attempt, self.answer
        if len(data) <= _SHORT_LINES_SLICE_BYTES:
            size = len(data)
        elif data.count(b"\n", 0, _SLICE_BYTES) > _SLICE_BYTES // _SHORT_LINE_BYTES:
            size = _SHORT_LINES_SLICE_BYTES
        else:
            size = _SLICE_BYTES
        self._unread = data[size:]
        had_text, was_final, thoughts = attempt.deltas > 0, attempt.is_final, attempt.thoughts
        text = answer.take(data[:size])
        if attempt.deltas and not had_text:
            attempt.first_text_s = self._loop.time() - self._begun
        if attempt.is_final and not was_final:
            self._deadlines.shorten(_LAST_WORD_TIMEOUT_S)
        elif attempt.thoughts > thoughts:
            self._deadlines.renew(has_text=attempt.deltas > 0)
        self._has_more = len(data) > _SMALL_READ_BYTES and self.content.total_bytes > answer.bytes
        return text

    def _break(self, error: Exception) -> None:
        """Record why no more data comes, and take the bytes that aiohttp no longer returns once a connection breaks."""
        self._broken = self._deadlines.expired
        if self._broken is None:
            self._broken = ChatError(ErrorCode.UPSTREAM_TRUNCATED, detail="The upstream's connection broke.")
            self._broken.__cause__ = error
        self._unread = self.content._read_nowait(-1)  # noqa: SLF001  # aiohttp has no public way

    def _interrupt(self, error: ChatError) -> None:
        """Wake the reader, now or at its next read; close the response, so that the upstream stops in any case."""
        self.content.set_exception(error)
        if self._response is not None:
            self._response.close()

    async def _end(self) -> None:
        """Check the answer, and read what follows it; raise `ChatError` if the answer is incomplete or has failed."""
        answer = self.answer
        failure = answer.failure or (None if answer.is_done else self._broken)
        if failure is None:
            failure = answer.check()
        elif self.attempt.is_final:  # a later failure does not affect the answer
            return
        if answer.reported is not None and self._response is not None:
            self._upstream.log.refused(self._response, answer.reported)
        elif answer.undecodable is not None:
            self._upstream.log.undecodable(answer.undecodable)
        if answer.unknown_reason is not None:
            self._upstream.log.unknown_ending(answer.unknown_reason)
        if failure is not None:
            self.attempt.finish_reason = None
            raise failure
        with suppress(TimeoutError, aiohttp.ClientError, OSError, ChatError):
            # Read what follows the last event, so that the connection can be reused, but do not wait for it.
            async with asyncio.timeout(_LAST_BYTES_TIMEOUT_S):
                while await self.content.readany():  # noqa: ASYNC110  # not polling: the loop reads data
                    await asyncio.sleep(0)
