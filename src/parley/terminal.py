"""`parley chat`: the terminal client, and a reference for clients that read the stream."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from io import TextIOWrapper
from typing import Final

import httpx
import httpx_sse
import msgspec

from parley.chat.errors import ErrorCode
from parley.wire.schema import (
    MAX_HISTORY_TURNS,
    ChatRequest,
    DoneChunk,
    ErrorChunk,
    ErrorResponse,
    HistoryTurn,
    StartChunk,
    StreamChunk,
    TextChunk,
)

# Longer than any silence of a Parley with default settings: Parley enforces the time limits, not this client.
_TIMEOUT: Final = httpx.Timeout(60, connect=5)

_decode_chunk: Final = msgspec.json.Decoder(StreamChunk).decode
_decode_error: Final = msgspec.json.Decoder(ErrorResponse).decode


class ChatFailedError(Exception):
    """The server could not be reached, or its answer failed; the message is meant for the user."""

    def __init__(self, message: str, code: ErrorCode | None = None) -> None:
        super().__init__(message)
        self.code = code


def chat(url: str, key: str | None, message: str) -> int:
    """Send one message (the argument, or piped in), or converse until the input ends; return the exit code."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # replace characters that the terminal cannot read or show
    message = os.fsencode(message).decode(errors="replace")
    mounts = dict.fromkeys(("all://127.0.0.1", "all://localhost"))  # use no proxy for this machine
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT, mounts=mounts) as client:
        if message or not sys.stdin.isatty():
            return _once(client, message or sys.stdin.read().rstrip("\n"))
        return _converse(client)


def _once(client: httpx.Client, message: str) -> int:
    try:
        _show(ask(client, message, []))
    except ChatFailedError as error:
        _note(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the pipe has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python would fail again at exit
        return 141
    return 0


def _converse(client: httpx.Client) -> int:
    with suppress(ImportError):
        import readline  # noqa: F401, PLC0415  # adds line editing to input(); not available on Windows
    _note("Ctrl-C stops an answer, Ctrl-D ends.")
    history: list[HistoryTurn] = []
    while True:
        try:
            message = input("\n> ").strip()
        except EOFError:
            return 0
        except KeyboardInterrupt:
            continue
        if not message:
            continue
        try:
            answer = _show(ask(client, message, history[-MAX_HISTORY_TURNS:]))
        except ChatFailedError as error:
            _note(str(error))
            if error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED and history:
                del history[: (len(history) + 2) // 4 * 2]
                _note("[The older half of the conversation is forgotten. Ask again.]")
        except KeyboardInterrupt:
            _note("\n[stopped]")
        else:
            history += [HistoryTurn("user", message), HistoryTurn("assistant", answer)]


def ask(client: httpx.Client, message: str, history: list[HistoryTurn]) -> Iterator[StartChunk | TextChunk | DoneChunk]:
    """Yield the chunks of an answer up to its `done`; closing the iterator closes the connection and stops the model.

    Raises:
        ChatFailedError: if the answer fails, before or after its start.
    """
    body = msgspec.json.encode(ChatRequest(message=message, history=history))
    headers = {"Content-Type": "application/json"}
    try:
        with httpx_sse.connect_sse(client, "POST", "/chat", content=body, headers=headers) as source:
            if source.response.status_code != httpx.codes.OK:
                failure = _decode_error(source.response.read())
                raise ChatFailedError(_explain(failure), failure.code)
            for event in source.iter_sse():
                chunk = _decode_chunk(event.data)
                if isinstance(chunk, ErrorChunk):
                    raise ChatFailedError("\n" + _explain(chunk.error))
                yield chunk
                if isinstance(chunk, DoneChunk):
                    return
    except httpx.ConnectError as error:
        raise ChatFailedError(f"Nothing answers at {client.base_url}. Start Parley there: `uv run parley`.") from error
    except (httpx.HTTPError, httpx_sse.SSEError, msgspec.DecodeError) as error:
        raise ChatFailedError(f"The server at {client.base_url} is no Parley, or it broke off.") from error
    raise ChatFailedError("\nThe stream ended without `done` or `error`: the answer may be incomplete.")


def _show(chunks: Iterator[StartChunk | TextChunk | DoneChunk]) -> str:
    """Print an answer as it arrives, then its tokens and time; return its text."""
    texts: list[str] = []
    for chunk in chunks:
        match chunk:
            case TextChunk():
                texts.append(chunk.text)
                shown = "".join(c for c in chunk.text if c.isprintable() or c in "\n\t")  # no terminal control codes
                print(shown, end="", flush=True)  # noqa: T201  # the program's output
            case DoneChunk():
                print()  # noqa: T201
                tokens, timing = chunk.usage.output_tokens, chunk.timing
                why = "" if chunk.finish_reason == "stop" else f", ended by {chunk.finish_reason}"
                _note(f"[{'?' if tokens is None else tokens} tokens, {timing.total_ms / 1000:.1f} s{why}]")
    return "".join(texts)


def _explain(error: ErrorResponse) -> str:
    return f"{error.error} {error.detail} {error.action} [{error.code}, {error.correlation_id}]"


def _note(text: str) -> None:
    """Print a text that is not part of the answer to standard error, so that it does not get into a pipe."""
    print(text, file=sys.stderr)  # noqa: T201
