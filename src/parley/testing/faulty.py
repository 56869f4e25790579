"""The command `parley faulty`: a fake upstream; the last word of the message names the fault to simulate."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from parley.testing.faults import FAULTS, show_named_fault
from parley.testing.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from parley.testing.exchange import Script


def serve(port: int, script: Script = show_named_fault) -> None:
    """Serve on this port of 127.0.0.1 until Ctrl-C."""
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
