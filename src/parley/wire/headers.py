"""The headers of responses that depend on no request."""

from __future__ import annotations

from typing import Final

STREAM_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",  # a proxy that compresses would hold the stream back
    "x-accel-buffering": "no",
}

# A response that is not a stream is for one caller at one time, and its correlation id is for one request. Without this
# header, Varnish answers a readiness probe, or another caller's request, from its cache.
NO_STORE: Final = "no-store"
