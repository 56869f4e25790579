"""Owns what an upstream's answer says, and how long it may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import Usage, UsageSource
from parley.providers.failures import ReportedError, named_finish
from parley.providers.wire import WIRE_ERRORS, Chunk, EventDecoder, decode_chunk

if TYPE_CHECKING:
    from parley.chat.run import Run

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
    """What the upstream says: the truth about the ending is in its own chunks, and nowhere in openai-agents."""

    def __init__(self, run: Run, most_tokens: int) -> None:
        self.is_done = False
        self.bytes = 0
        """The bytes taken so far."""
        self._run = run
        self.decoder = EventDecoder()
        self._is_completion = False
        self._choices = 0
        self._has_other_text = False
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
            ChatError: if it was not.
        """
        if not self._is_completion:
            raise ChatError(ErrorCode.UPSTREAM_ERROR, detail="The upstream answered with something else than a stream.")
        if self._run.finish_reason is None:
            raise ChatError(ErrorCode.UPSTREAM_TRUNCATED)
        if self._has_other_text and not self._run.deltas:
            detail = "The upstream gave text to other choices than the one that was asked for."
            raise ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail)

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
            # A message is the whole answer; where the text has come already, it says the same again.
            delta = choice.delta or (None if texts or self._run.deltas else choice.message)
            text = (delta.content or "") + (delta.refusal or "") if delta else ""
            if choice.index:  # another answer, which was not asked for
                self._has_other_text |= bool(text)
                continue
            if text:
                texts.append(text)
                if self._run.finish_reason is not None:
                    self._run.retract_finish()
            if choice.finish_reason:
                has_text = bool(texts) or bool(self._run.deltas)
                self._run.finish(named_finish(choice.finish_reason), is_final=has_text and not text)


def _sane(count: int | None) -> int | None:
    return count if count is not None and 0 <= count <= _LARGEST_COUNT else None
