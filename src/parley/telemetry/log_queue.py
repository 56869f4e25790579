"""Write log lines to standard output, with a queue, so that a slow reader blocks no request."""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final

# Limits on the lines that wait or are being written: several seconds' worth from a busy worker.
MOST_LINES: Final = 5_000
MOST_BYTES: Final = 1_048_576
# The total time, in seconds, that all waits for the last lines may take.
_PATIENCE_S: Final = 1.0
# Writes up to this size are atomic, so that the lines of workers that share a pipe stay whole.
_ATOMIC_BYTES: Final = getattr(select, "PIPE_BUF", 512)
# Linux can write without waiting even to a blocking pipe, which must stay blocking, as other processes share it.
_NO_WAIT: Final[int | None] = getattr(os, "RWF_NOWAIT", None)
# Errors from terminals, most files and old kernels, which cannot do that.
_CANNOT: Final = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


class LogQueue:
    """A text stream whose writer never waits: a thread writes what the file descriptor does not take at once.

    Each write is one line, written directly if possible, as waking the thread costs more. Lines are dropped and counted
    if the queue is full or the descriptor fails; a full queue takes lines again once half of it is free.
    """

    def __init__(
        self, descriptor: int, encoding: str, count: Callable[[int], None], tell: Callable[[int], None]
    ) -> None:
        """Start the thread; `count` gets the number of lines dropped, and `tell` their sum, before the next line."""
        self._descriptor = descriptor
        self._encoding = encoding
        self._count = count
        self._tell = tell
        self._patience_s = _PATIENCE_S
        self._is_ending = False
        self._can_write_now = True
        self.start()

    def start(self) -> None:
        """Start with an empty queue; call this again in a forked process, which has the queue but not the thread."""
        # Each of these numbers only grows, and is written by one thread only: the writers share a lock.
        self._lines_in = self._bytes_in = self._dropped = self._told = 0
        self._lines_out = self._bytes_out = self._failed = 0
        self._is_dropping = self._is_failing = False
        self._items: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        threading.Thread(target=self._pass_on, name="logs", daemon=True).start()

    def write(self, text: str) -> None:
        """Write, queue or drop a line; threads that write must share a lock."""
        line = text.encode(self._encoding, "backslashreplace")
        if not self._has_room(len(line)):
            self._is_dropping = True
            self._dropped += 1
            self._count(1)
            return
        self._is_dropping = False
        if (untold := self._dropped + self._failed - self._told) and not self._is_failing:
            self._told += untold
            self._tell(untold)
        line = self._not_written(line)
        if not line:
            return
        self._lines_in += 1
        self._bytes_in += len(line)
        self._items.put(line)

    def flush(self) -> None:
        """Do nothing; but after `settle`, wait until the lines are written."""
        if self._is_ending:
            self._wait()

    def settle(self) -> None:
        """Wait for each line from now on, as the process may end after any; all waits together take at most 1 s."""
        self._is_ending = True
        self._wait()

    def close(self) -> None:
        """Write what is left; if nobody reads it in time, discard it, so that the interpreter's exit does not hang."""
        self._is_ending = True
        if not self._wait():
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._descriptor)

    def _not_written(self, line: bytes) -> bytes:
        """Write as much of a line as the descriptor takes at once; return what is left of it."""
        is_queued = self._is_failing or self._lines_in > self._lines_out
        if _NO_WAIT is None or not self._can_write_now or is_queued or len(line) > _ATOMIC_BYTES:
            return line
        try:
            return line[os.pwritev(self._descriptor, [line], -1, _NO_WAIT) :]
        except OSError as error:  # the thread handles all errors but this one
            self._can_write_now = error.errno not in _CANNOT
            return line

    def _has_room(self, size: int) -> bool:
        share = 2 if self._is_dropping else 1
        lines, waiting = self._lines_in - self._lines_out, self._bytes_in - self._bytes_out
        return lines < MOST_LINES // share and waiting + size <= MOST_BYTES // share

    def _wait(self) -> bool:
        started = time.monotonic()
        done = threading.Event()
        self._items.put(done)
        is_done = done.wait(self._patience_s)
        self._patience_s = max(0.0, self._patience_s - (time.monotonic() - started))
        return is_done

    # Called in the thread only.

    def _pass_on(self) -> None:
        items, chunk, size = self._items, list[bytes](), 0
        while True:
            item = None
            with suppress(Empty):
                item = items.get(block=not chunk)
            if chunk and not (isinstance(item, bytes) and size + len(item) <= _ATOMIC_BYTES):
                self._write(chunk)
                chunk, size = [], 0
            if isinstance(item, bytes):
                chunk.append(item)
                size += len(item)
            elif item is not None:
                item.set()

    def _write(self, chunk: list[bytes]) -> None:
        data = memoryview(b"".join(chunk))
        size = len(data)
        try:
            while data:
                data = data[self._write_some(data) :]
            self._is_failing = False
        except OSError:  # the reader is gone, or the disk is full
            self._is_failing = True
            self._failed += len(chunk)
            self._count(len(chunk))
        self._lines_out += len(chunk)
        self._bytes_out += size

    def _write_some(self, data: memoryview) -> int:
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # another process that shares the descriptor made it non-blocking
                select.select([], [self._descriptor], [])
