"""Null for an optional field of a request is the same as leaving the field out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from parley.testing.factories import stream_of
from parley.testing.in_memory import FakeParley
from parley.testing.upstream import USAGE, ScriptedUpstream, delta
from tests.support import contract
from tests.support.running import kind, read_chunks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from parley.testing.exchange import Exchange

HI = {"message": "Hi"}
SHAPE = contract.read()["components"]["schemas"]["ChatRequest"]
OPTIONAL = sorted(SHAPE["properties"].keys() - SHAPE["required"])
NULLS = {field: {**HI, field: None} for field in OPTIONAL} | {"all": {**HI, **dict.fromkeys(OPTIONAL)}}


async def thinks(exchange: Exchange) -> None:
    """Send reasoning, then the answer."""
    await exchange.head()
    await exchange.events({"choices": [{"index": 0, "delta": {"reasoning_content": "They greet."}}]})
    await exchange.events(delta("Hello"), delta(finish_reason="stop"), {"choices": [], "usage": USAGE}, "[DONE]")
    await exchange.end()


def received(response: httpx.Response) -> Iterable[str]:
    """Return the kinds of the chunks, or the fields of the answer."""
    assert response.status_code == 200, response.text
    if response.headers["content-type"] == "application/json":
        body: dict[str, object] = response.json()
        return body.keys()
    return [kind(chunk) for chunk in read_chunks(response.content)]


@pytest.mark.parametrize("path", ["/chat", "/chat/complete"])
@pytest.mark.parametrize("body", NULLS.values(), ids=NULLS)
async def test_null_is_the_same_as_leaving_the_field_out(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str, body: dict[str, object]
) -> None:
    """The upstream gets the same request, and the client gets the same kind of answer, also from the fake."""
    contract.check("ChatRequest", body)
    upstream.script, fake = thinks, FakeParley()
    fake.answer(*stream_of("Hello", reasoning=["They greet."]))
    async with httpx.AsyncClient(transport=fake, base_url="http://parley") as faked:
        left_out, null, from_fake = [
            received(await one.post(path, json=sent)) for one, sent in ((client, HI), (client, body), (faked, body))
        ]
    assert left_out == null == from_fake
    first, second = (exchange.json for exchange in upstream.exchanges)
    assert first == second
