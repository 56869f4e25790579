"""Owns what an upstream's answer says, and how long it may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import FinishReason, Usage, UsageSource
from parley.providers.failures import ReportedError, named_finish
from parley.providers.tool_calls import ToolCalls
from parley.providers.wire import WIRE_ERRORS, Chunk, EventDecoder, decode_chunk, decode_tool_calls

if TYPE_CHECKING:
    from parley.chat.run import Attempt

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


class Answer:
    """What the upstream says: the truth about the ending is in its own chunks, and nowhere else."""

    def __init__(self, attempt: Attempt, most_tokens: int, *, has_tools: bool = False) -> None:
        """Note what comes in the attempt; the limits depend on the tokens that were asked for."""
        self.is_done = False
        self.bytes = 0
        """The bytes taken so far."""
        self.failure: ChatError | None = None
        """Why no more can be taken, if that is so."""
        self.tool_calls = ToolCalls() if has_tools else None
        self._attempt = attempt
        self.decoder = EventDecoder()
        self._is_completion = False
        self._parts = 0  # choices, and pieces of tool calls
        self._has_other_text = False
        self._characters = 0
        self._most_lines = _SPARE_LINES + most_tokens * _LINES_PER_TOKEN
        self._most_bytes = _SPARE_BYTES + most_tokens * _BYTES_PER_TOKEN
        self._most_characters = _SPARE_CHARACTERS + most_tokens * _CHARACTERS_PER_TOKEN

    def take(self, data: bytes) -> str:
        """Decode bytes; return their text, and note all else that they say, a failure too."""
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
            self.failure = ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail)
            self.failure.__cause__ = error
        except ChatError as error:
            self.failure = error
        text = "".join(texts)
        self._characters += len(text)
        if (
            self.decoder.lines + self._parts > self._most_lines
            or self.bytes > self._most_bytes
            or self._characters > self._most_characters
        ):
            detail = "The upstream sent far more than the tokens that were asked for."
            self.failure = ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail, retryable=False)
        return text

    def check(self) -> ChatError | None:
        """Return what is wrong with the answer, now that all of it has been taken."""
        if not self._is_completion:
            return ChatError(
                ErrorCode.UPSTREAM_ERROR, detail="The upstream answered with something else than a stream."
            )
        if self._attempt.finish_reason is None:
            return ChatError(ErrorCode.UPSTREAM_TRUNCATED)
        if self._has_other_text and not self._attempt.deltas:
            detail = "The upstream gave text to other choices than the one that was asked for."
            return ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail)
        return None

    def _note(self, chunk: Chunk, texts: list[str]) -> None:
        """Take a chunk's text, and note its finish reason and usage."""
        if (error := bytes(chunk.error)) not in {b"", b"null"}:
            raise ReportedError(b'{"error":%b}' % error)
        if chunk.usage is not None:
            self._note_usage(*msgspec.structs.astuple(chunk.usage))
        if not chunk.choices:
            return
        attempt = self._attempt
        self._parts += len(chunk.choices)
        for choice in chunk.choices:
            # A message is the whole answer; where the text has come already, it says the same again.
            delta = choice.delta or (None if attempt.deltas else choice.message)
            text = (delta.content or "") + (delta.refusal or "") if delta else ""
            if choice.index:  # another answer, which was not asked for
                self._has_other_text |= bool(text)
                continue
            is_piece = bool(text)
            if text:
                texts.append(text)
            if self.tool_calls is not None and delta is not None and bytes(delta.tool_calls):
                pieces = decode_tool_calls(delta.tool_calls) or ()
                self._parts += len(pieces)
                size = self.tool_calls.add(pieces)
                self._characters += size
                is_piece |= size > 0
            if is_piece:
                attempt.deltas += 1
                attempt.finish_reason, attempt.is_final = None, False
            if choice.finish_reason:
                attempt.finish_reason = self._finish(choice.finish_reason)
                attempt.is_final = attempt.deltas > 0 and not is_piece

    def _finish(self, reason: str) -> FinishReason:
        # A model that calls tools has finished like any other: it says more when it has their results.
        if self.tool_calls is not None and reason in _TOOL_REASONS:
            return FinishReason.STOP
        return named_finish(reason)

    def _note_usage(self, *counts: int | None) -> None:
        read, written, total = (_count(count) for count in counts)
        if (read, written, total) != (None, None, None):
            self._attempt.usage = Usage(
                input_tokens=read, output_tokens=written, total_tokens=total, source=UsageSource.UPSTREAM
            )


_TOOL_REASONS: Final = ("tool_calls", "function_call")


def _count(count: int | None) -> int | None:
    return count if count is not None and 0 <= count <= _LARGEST_COUNT else None
