"""The messages of the tests for the embedded model, and a way to break its packages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from parley.wire.schema import ChatResponse

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

FRANCE = {"message": "What is the capital of France?"}
# The model answers this with far more than 1,000 tokens.
LONG = {"message": "Write a very long story about a dragon, with many chapters."}


async def complete(client: httpx.AsyncClient, **request: Any) -> ChatResponse:
    """POST to /chat/complete and return the answer."""
    response = await client.post("/chat/complete", json=request)
    assert response.status_code == 200, response.text
    return ChatResponse(**response.json())


async def broken_module(folder: Path, name: str, code: str) -> str:
    """Put a module with this code before the installed one, so that its import fails; return the PYTHONPATH for it."""
    package = anyio.Path(folder / name)
    await package.mkdir()
    await (package / "__init__.py").write_text(code)
    return str(folder)
