"""The command `parley faulty`: a fake upstream; the last word of the message names the fault to simulate."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from parley.testing.faults import FAULTS
from parley.testing.upstream import ScriptedUpstream, respond

if TYPE_CHECKING:
    from collections.abc import Mapping

    from parley.testing.exchange import Exchange, Script


async def show_named_fault(exchange: Exchange) -> None:
    """Show the fault that the last word of the message names; without one, answer properly."""
    await script_of(exchange, FAULTS)(exchange)


def script_of(exchange: Exchange, scripts: Mapping[str, Script]) -> Script:
    """Return the script that the last word of the message names, or one that refuses what is no chat completion."""
    if not exchange.path.endswith("/chat/completions"):
        return respond(404, {"error": {"message": "Not found."}})
    try:
        words = exchange.message.split()
    except (ValueError, LookupError, TypeError):
        return respond(400, {"error": {"message": "The body is no chat completion with a user's message."}})
    return scripts.get(words[-1] if words else "none", scripts["none"])


def serve(port: int, script: Script = show_named_fault) -> None:
    """Serve on this port of 127.0.0.1 until Ctrl-C; raise `OSError` if the port is in use."""
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(port, script))


async def _serve(port: int, script: Script) -> None:
    async with ScriptedUpstream(port) as upstream:
        upstream.script = script
        sys.stdout.write(
            f"A faulty upstream at {upstream.url}. Set OPENAI_BASE_URL to it, and PARLEY_MODEL to any name.\n"
            f"The last word of a message names the fault: {' '.join(FAULTS)}\n"
        )
        sys.stdout.flush()
        await asyncio.Event().wait()
