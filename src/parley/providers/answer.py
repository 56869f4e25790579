"""Read an upstream's answer: text, tool calls, usage and ending, with limits on its size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import FinishReason
from parley.providers import lenient
from parley.providers.failures import ReportedError, finish_reason_of, is_error, reported
from parley.providers.stream_decoding import (
    WIRE_ERRORS,
    Choice,
    Chunk,
    Delta,
    EventDecoder,
    decode_chunk,
)
from parley.providers.tool_calls import ToolCalls
from parley.providers.usage import usage_of
from parley.providers.vocabulary import TOOL_CALLS

if TYPE_CHECKING:
    from parley.chat.run import Attempt

# Allowances on top of the limits per token, for reasoning, comments and empty events.
_SPARE_LINES: Final = 500_000
_SPARE_BYTES: Final = 32 << 20
_SPARE_CHARACTERS: Final = 1 << 20
# More than any upstream needs per token.
_LINES_PER_TOKEN: Final = 20
_BYTES_PER_TOKEN: Final = 4096
_CHARACTERS_PER_TOKEN: Final = 32
# Only payloads shorter than this can be one of `_NO_CHUNKS`.
_SHORT_BYTES: Final = 16
# Far more lines than an event has if each of its lines is an event of its own.
_MOST_LINES_OF_EVENT: Final = 1000
_MOST_CHOICES: Final = 1000
_NO_CHUNKS: Final = (b"", b"[DONE]", b"{}", b"null")
_EMPTY: Final = Delta()
_NO_ERRORS: Final = (b"", b"null", b'""', b"{}", b"[]", b"false", b"0")


class Answer:
    """An upstream's answer; only the upstream's own chunks say how it ended."""

    def __init__(
        self, attempt: Attempt, most_tokens: int, *, has_tools: bool = False, keeps_thoughts: bool = False
    ) -> None:
        """Record the answer in `attempt`; the size limits grow with `most_tokens`, the number of tokens asked for."""
        self.is_done = False
        self.bytes = 0
        """The number of bytes taken so far."""
        self.failure: ChatError | None = None
        """Why the answer cannot be read any further, or `None`."""
        self.tool_calls = ToolCalls() if has_tools else None
        self._attempt = attempt
        self._decoder = EventDecoder()
        self.reported: bytes | None = None
        """The payload in which the upstream reported the failure, if it did."""
        self.undecodable: bytes | None = None
        """The bytes read last, if they could not be decoded."""
        self.unknown_reason: str | None = None
        """The upstream's finish reason, if Parley does not know it."""
        self.thoughts: list[str] = []
        """The reasoning received since this list was last emptied."""
        self._keeps_thoughts = keeps_thoughts
        self._is_completion = False
        self._parts = 0  # the number of choices and of pieces of tool calls
        self._message = ""
        self._has_other_text = False
        self._has_called = False
        self._characters = 0
        self._most_lines = _SPARE_LINES + most_tokens * _LINES_PER_TOKEN
        self._most_bytes = _SPARE_BYTES + most_tokens * _BYTES_PER_TOKEN
        self._most_characters = _SPARE_CHARACTERS + most_tokens * _CHARACTERS_PER_TOKEN

    def take(self, data: bytes, *, is_end: bool = False) -> str:
        """Decode bytes and return their text; record everything else that they say, including a failure."""
        self.bytes += len(data)
        texts: list[str] = []
        try:
            for payload in self._decoder.end() if is_end else self._decoder.feed(data):
                if len(payload) < _SHORT_BYTES and payload.strip() in _NO_CHUNKS:
                    self.is_done = payload.strip() == b"[DONE]"
                    if self.is_done:
                        break
                    continue
                try:
                    chunk = decode_chunk(payload)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    self._decode_leniently(payload, texts)
                else:
                    self._note(chunk, payload, texts)
        except (*WIRE_ERRORS, ReportedError, ChatError) as error:
            self._fail(error, data)
        is_whole = self.is_done and self._is_completion
        if self._decoder.error is not None and self.failure is None and not is_whole:
            self._fail(ReportedError(self._decoder.error), data)
        text = "".join(texts)
        self._characters += len(text)
        if (
            self._decoder.lines + self._parts > self._most_lines
            or self.bytes > self._most_bytes
            or self._characters > self._most_characters
        ):
            detail = "The upstream sent far more than Parley asked for."
            self.failure = ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail, retryable=False)
        return text

    def _fail(self, error: Exception, data: bytes) -> None:
        if isinstance(error, ChatError):
            self.failure = error
        elif isinstance(error, ReportedError):
            self.failure, self.reported = reported(error.body), error.body
        else:
            detail = "The upstream sent an event that is not a completion chunk."
            self.failure = ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail)
            self.failure.__cause__ = error
            self.undecodable = data

    def end(self) -> str:
        """Decode what is left at the end of the body, if it is complete, and return its text."""
        text = self.take(b"", is_end=True)
        if self.failure is not None and isinstance(self.failure.__cause__, ValueError):
            self.failure = self.undecodable = None
            if not self._attempt.is_final:  # the rest may have been text
                self._attempt.finish_reason = None
        return text

    def _decode_leniently(self, payload: bytes, texts: list[str]) -> None:
        """Decode an event that breaks the format, or several events without the blank lines between them."""
        try:
            self._note(lenient.decode_chunk(payload), payload, texts)
        except ValueError:
            if not 0 < payload.count(b"\n") < _MOST_LINES_OF_EVENT:
                raise
            for line in payload.split(b"\n"):
                self._note(lenient.decode_chunk(line), line, texts)

    def check(self) -> ChatError | None:
        """Return the error in the answer, or `None`; call this when the whole answer has been taken."""
        attempt = self._attempt
        has_come = attempt.deltas or attempt.thoughts
        if not self.bytes:
            return ChatError(ErrorCode.UPSTREAM_ERROR, detail="The upstream's answer is empty.", is_transient=True)
        if self._is_completion and attempt.finish_reason is None:
            if not self.is_done or not has_come:
                return ChatError(ErrorCode.UPSTREAM_TRUNCATED)
            attempt.finish_reason = FinishReason.UNKNOWN
        detail = None
        if not self._is_completion:
            detail = "The upstream's response is not a stream of completion chunks."
        elif self._has_called and not attempt.deltas:
            detail = "The model called a tool in a form that Parley does not support."
        elif attempt.finish_reason is FinishReason.UNKNOWN and not has_come:
            detail = "The upstream ended the answer before any text, with an unknown finish reason."
        elif self._has_other_text and not attempt.deltas:
            detail = "The upstream sent text only for choices other than the first."
        return None if detail is None else ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail)

    def _note(self, chunk: Chunk, payload: bytes, texts: list[str]) -> None:
        """Append a chunk's text to `texts`, and record its finish reason and usage."""
        if chunk.usage or chunk.x_groq or chunk.error or not chunk.choices:
            self._note_fields(chunk, payload)
        attempt = self._attempt
        choices = chunk.choices or ()
        self._parts += len(choices)
        for choice in choices[:_MOST_CHOICES]:
            self._is_completion = True
            if choice.index:  # another answer, which Parley did not ask for
                self._has_other_text |= bool(choice.delta and choice.delta.content)
                continue
            delta, pieces = choice.delta, attempt.deltas
            if choice.message or choice.text:
                delta = self._other_delta(choice)
            if delta is not None:
                if delta.content or delta.refusal:
                    texts += filter(None, (delta.content, delta.refusal))
                    attempt.deltas += 1
                if delta.reasoning_content or delta.reasoning or (self.tool_calls and delta.tool_calls):
                    self._note_thought_and_calls(delta)
            if attempt.deltas > pieces:
                attempt.finish_reason, attempt.is_final = None, False
            if choice.finish_reason or choice.usage or choice.error:
                self._note_end(choice, payload, is_alone=attempt.deltas == pieces)

    def _note_fields(self, chunk: Chunk, payload: bytes) -> None:
        """Record the usage beside the choices; raise `ReportedError` if there is an error."""
        if bytes(chunk.error) not in _NO_ERRORS:
            raise ReportedError(payload)
        counts = chunk.usage or (chunk.x_groq and chunk.x_groq.usage)
        if counts:
            self._attempt.usage = usage_of(counts) or self._attempt.usage
        elif chunk.choices is None and is_error(payload):
            raise ReportedError(payload)

    def _note_thought_and_calls(self, delta: Delta) -> None:
        attempt = self._attempt
        if thought := delta.reasoning_content or delta.reasoning:
            if self._keeps_thoughts:
                self.thoughts.append(thought)
            self._characters += len(thought)
            attempt.thoughts += 1
            attempt.finish_reason, attempt.is_final = None, False
        if self.tool_calls is not None and bytes(delta.tool_calls):
            pieces = lenient.decode_tool_calls(delta.tool_calls)
            self._parts += len(pieces)
            size = self.tool_calls.add(pieces)
            self._characters += size
            attempt.deltas += size > 0

    def _note_end(self, choice: Choice, payload: bytes, *, is_alone: bool) -> None:
        """Record a finish reason, which is final if it comes after text, in a chunk without text."""
        if bytes(choice.error) not in _NO_ERRORS:
            raise ReportedError(payload)
        if choice.usage:
            self._attempt.usage = usage_of(choice.usage) or self._attempt.usage
        if choice.finish_reason:
            self._attempt.finish_reason = self._finish(choice.finish_reason)
            self._attempt.is_final = self._attempt.deltas > 0 and is_alone

    def _other_delta(self, choice: Choice) -> Delta | None:
        """Return what a chunk adds to the answer if it has a message or a text instead of a delta, or beside one."""
        if choice.delta not in (None, _EMPTY):
            return choice.delta
        if choice.message is None:
            return Delta(content=choice.text)
        if self._attempt.deltas and not self._message:
            return None  # it repeats what came as deltas
        message = (choice.message.content or "") + (choice.message.refusal or "")
        choice.message.content, choice.message.refusal = message.removeprefix(self._message), None
        self._message = message if message.startswith(self._message) else self._message + message
        return choice.message

    def _finish(self, reason: str) -> FinishReason:
        if reason in TOOL_CALLS:
            if self.tool_calls is None:
                detail = "The model called a tool, although the request has none."
                raise ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail, retryable=False)
            self._has_called = True
            return FinishReason.STOP  # the model continues when it has the tools' results
        named = finish_reason_of(reason)
        if named is FinishReason.UNKNOWN:
            self.unknown_reason = reason
        return named
