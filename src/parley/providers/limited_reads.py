"""Read the body of a response that is not an answer, with limits on its size and time."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp

_MOST_BYTES: Final = 65_536
_TIMEOUT_S: Final = 2.0


async def beginning(content: aiohttp.StreamReader) -> bytes:
    """Return the beginning of a body, at most 64 KiB; an honest body is shorter."""
    text = bytearray()
    while len(text) < _MOST_BYTES and (data := await content.readany()):
        text += data
        await asyncio.sleep(0)  # the next read may return without yielding to the event loop
    return bytes(text[:_MOST_BYTES])


async def error_body(response: aiohttp.ClientResponse) -> bytes:
    """Return the body of an HTTP error; empty if it is compressed, broken or late, as the status says enough."""
    if is_compressed(response):
        return b""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return await beginning(response.content)
    except (aiohttp.ClientError, OSError):  # `TimeoutError` is an `OSError`
        return b""


def is_compressed(response: aiohttp.ClientResponse) -> bool:
    """Return whether the body has a content encoding, which Parley never asks for."""
    return response.headers.get("Content-Encoding", "").strip().lower() not in {"identity", ""}
