"""Owns the reading of a response's body that is no answer: as much of it as an honest one has."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp

_MOST_BYTES: Final = 65_536
_TIMEOUT_S: Final = 2.0


async def beginning(content: aiohttp.StreamReader) -> bytes:
    """Read as much of a body as an honest one has."""
    text = bytearray()
    while len(text) < _MOST_BYTES and (data := await content.readany()):
        text += data
        await asyncio.sleep(0)  # the next read may return without a turn for others
    return bytes(text[:_MOST_BYTES])


async def explanation(response: aiohttp.ClientResponse) -> bytes:
    """Return the body of an HTTP error, if it can be read and comes soon; the status says enough."""
    if is_compressed(response):
        return b""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return await beginning(response.content)
    except (aiohttp.ClientError, OSError):  # a timeout is one too
        return b""


def is_compressed(response: aiohttp.ClientResponse) -> bool:
    """Tell whether the body has an encoding, which Parley never asks for."""
    return response.headers.get("Content-Encoding", "").strip().lower() not in {"identity", ""}
