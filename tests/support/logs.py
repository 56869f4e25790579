"""The logs as tests see them: the standard output of the server under test."""

from __future__ import annotations

import asyncio
import io
import json
import re
from typing import Any, Literal

import anyio
import msgspec

from parley.chat.record import Record

COLOUR = re.compile(r"\x1b\[\d+m")


class RequestLine(Record, kw_only=True, forbid_unknown_fields=True):
    """The log line of a request, with the fields that every line has."""

    timestamp: str
    level: Literal["debug", "info", "warning"]
    event: Literal["request"]
    logger: str


class Logs(io.StringIO):
    """The output so far, as lines."""

    def __init__(self) -> None:
        super().__init__()
        self._written = asyncio.Event()
        self._lines: list[dict[str, Any]] = []
        self._decoded = 0

    def write(self, text: str) -> int:
        """Receive a line."""
        self._written.set()
        return super().write(text)

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of an event, without those of health checks."""
        text = self.getvalue()
        end = text.rfind("\n") + 1
        for line in map(
            json.loads, text[self._decoded : end].splitlines()
        ):  # each line once: some tests ask very often
            if line["event"] == "request":
                msgspec.convert(line, RequestLine)
            self._lines.append(line)
        self._decoded = end
        return [
            line for line in self._lines if line["event"] == event and not str(line.get("route")).startswith("/health")
        ]

    async def line_of(self, correlation_id: str) -> dict[str, Any]:
        """Wait for the request line with this correlation id, and return it."""
        with anyio.fail_after(120):
            while True:
                for line in self.lines("request"):
                    if line["correlation_id"] == correlation_id:
                        return line
                await self.written()

    async def written(self) -> None:
        """Wait until more is written."""
        self._written.clear()
        await self._written.wait()

    async def line(self, event: str = "request", number: int = 1) -> dict[str, Any]:
        """Wait for the line of this number for an event; it must be the last one of the event. Return it."""
        with anyio.fail_after(120):
            while len(lines := self.lines(event)) < number:
                await self.written()
        assert len(lines) == number
        return lines[-1]
