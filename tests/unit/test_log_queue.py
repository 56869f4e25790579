"""The queue of log lines, over real pipes whose reader is slow, stops, returns or leaves."""

from __future__ import annotations

import fcntl
import os
import threading
from typing import TYPE_CHECKING

import pytest

from parley.telemetry.log_queue import MOST_BYTES, MOST_LINES, LogQueue

if TYPE_CHECKING:
    from collections.abc import Iterator

PIPE_BYTES = 4096


class Pipe:
    """A small pipe, a queue that writes to it, and the numbers of dropped lines that the queue reported."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.counted: list[int] = []
        self.told: list[int] = []
        self._unread = b""
        self.queue = LogQueue(self.writer, "utf-8", self.counted.append, self._tell)

    def _tell(self, number: int) -> None:
        self.told.append(number)
        self.queue.write(f"{number} dropped\n")

    def read(self, number: int) -> list[str]:
        """Wait for this number of lines and return them."""
        while self._unread.count(b"\n") < number:
            self._unread += os.read(self.reader, PIPE_BYTES)
        *lines, self._unread = self._unread.split(b"\n", number)
        return [line.decode() for line in lines]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Make a pipe; at the end, close its reader and wait until the thread has finished its writes."""
    pipe = Pipe()
    yield pipe
    os.close(pipe.reader)
    is_done = threading.Event()
    pipe.queue._items.put(is_done)  # noqa: SLF001  # `settle` waits for at most a second
    is_done.wait()
    os.close(pipe.writer)


def fill(pipe: Pipe, line: str) -> int:
    """Write numbered lines until one is dropped; return how many lines were taken before it."""
    number = 0
    while not pipe.counted:
        pipe.queue.write(f"{number} {line}\n")
        number += 1
    return number - 1


@pytest.mark.parametrize("line", ["x", "x" * 600, "ü" * 3000])
def test_whoever_logs_never_waits_for_the_reader(pipe: Pipe, line: str) -> None:
    """Lines without room are dropped and counted; the others arrive whole and in order, then the count follows."""
    taken = fill(pipe, line)
    size = len(f"0000 {line}\n".encode())
    assert taken <= min(MOST_LINES, MOST_BYTES / (size - 4)) + PIPE_BYTES / 2
    assert taken >= min(MOST_LINES, MOST_BYTES / size) - 1
    for _ in range(9):
        pipe.queue.write("lost\n")
    lines = pipe.read(taken)
    assert lines == [f"{number} {line}" for number in range(taken)]
    pipe.queue.write("again\n")
    assert pipe.read(2) == ["10 dropped", "again"]
    assert (sum(pipe.counted), pipe.told) == (10, [10])


def test_once_a_line_is_dropped_none_is_taken_before_half_of_the_queue_is_free(pipe: Pipe) -> None:
    """Otherwise a reader that is always too slow would get a message about each dropped line."""
    taken = fill(pipe, "x" * 600)
    pipe.read(100)
    pipe.queue.write("lost\n")
    assert len(pipe.counted) == 2
    pipe.read(taken - 100)
    pipe.queue.write("again\n")
    assert pipe.read(2) == ["2 dropped", "again"]


def test_what_a_reader_that_is_gone_does_not_get_is_counted(pipe: Pipe) -> None:
    """Lost lines are not retried; a new reader is told how many were lost."""
    os.close(pipe.reader)
    for _ in range(3):
        pipe.queue.write("lost\n")
        pipe.queue.settle()
    assert (pipe.counted, pipe.told) == ([1, 1, 1], [])
    pipe.reader, writer = os.pipe()
    os.dup2(writer, pipe.writer)
    os.close(writer)
    pipe.queue.write("first\n")
    pipe.queue.flush()
    pipe.queue.write("second\n")
    assert pipe.read(3) == ["first", "3 dropped", "second"]


def test_a_pipe_that_somebody_made_non_blocking_is_waited_for(pipe: Pipe) -> None:
    """Another process that shares the pipe may have made it non-blocking."""
    os.set_blocking(pipe.writer, False)
    for number in range(100):
        pipe.queue.write(f"{number} {'x' * 600}\n")
    assert [line.split()[0] for line in pipe.read(100)] == [str(number) for number in range(100)]
    assert pipe.counted == []


def test_the_last_lines_are_waited_for_but_not_for_long(pipe: Pipe) -> None:
    """All waits together take at most a second; after that, nothing else waits for the reader either."""
    pipe.queue.write("first\n")
    pipe.queue.settle()
    assert os.read(pipe.reader, PIPE_BYTES) == b"first\n"
    fill(pipe, "x" * 600)
    for _ in range(1000):
        pipe.queue.flush()
    pipe.queue.close()
    os.write(pipe.writer, b"x" * 2 * PIPE_BYTES)
