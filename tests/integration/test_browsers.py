"""The preflight requests of browsers, and the contract's web page."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.support import contract
from tests.support.running import problem, running

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from parley.settings import Settings
    from tests.support.logs import Logs

HERE, ELSEWHERE = "https://app.example", "https://other.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-correlation-id"}


async def preflight(client: httpx.AsyncClient, origin: str) -> httpx.Response:
    """Send the preflight request that a browser sends before it posts JSON from another origin."""
    return await client.options("/chat", headers={"Origin": origin, **PREFLIGHT})


async def test_no_other_origin_may_call_by_default(client: httpx.AsyncClient) -> None:
    """Neither the preflight response nor the actual response has CORS headers."""
    answered = await client.post("/chat", json={"message": "hi"}, headers={"Origin": HERE})
    for response in (await preflight(client, HERE), answered):
        assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("origins", [HERE, f"https://third.example,{HERE}", "*"])
async def test_a_given_origin_may_call_and_read_the_headers_it_needs(
    make_settings: Callable[..., Settings], logs: Logs, origins: str
) -> None:
    """Streams and errors have the headers, whichever part of Parley answers."""
    async with running(make_settings(cors_origins=origins), logs) as client:
        asked = await preflight(client, HERE)
        assert asked.status_code == 204
        assert asked.headers["access-control-allow-origin"] in {HERE, "*"}
        allowed = {name.strip().lower() for name in asked.headers["access-control-allow-headers"].split(",")}
        assert {"content-type", "x-correlation-id"} <= allowed
        assert "access-control-allow-credentials" not in asked.headers  # as `docs/clients.md` says
        for request in (
            client.build_request("POST", "/chat", json={"message": "hi"}),
            client.build_request("POST", "/chat", json={"message": ""}),
            client.build_request("GET", "/nothing"),
        ):
            request.headers["Origin"] = HERE
            response = await client.send(request)
            assert response.headers["access-control-allow-origin"] in {HERE, "*"}
            assert response.headers["access-control-expose-headers"] == "Retry-After, X-Correlation-ID"


async def test_an_origin_that_is_not_given_may_not_call(make_settings: Callable[..., Settings], logs: Logs) -> None:
    """Origins that begin or end like an allowed one are refused, too."""
    async with running(make_settings(cors_origins=HERE), logs) as client:
        for origin in (ELSEWHERE, f"{HERE}.evil.example", "https://evil.example/?https://app.example", "null"):
            refused = await preflight(client, origin)
            assert (refused.status_code, refused.headers["content-type"]) == (400, "text/plain; charset=utf-8")
            response = await client.post("/chat", json={"message": "hi"}, headers={"Origin": origin})
            assert "access-control-allow-origin" not in response.headers


async def test_the_contracts_page_takes_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    """Parley itself serves every file that the page loads."""
    page = (await client.get("/schema")).raise_for_status().text
    loaded = re.findall(r'<(?:script|link)[^>]* (?:src|href)="([^"]*)"', page)
    assert len(loaded) == 4
    for address in loaded:
        assert address.startswith("/schema/")
        assert (await client.get(address)).raise_for_status().content
    problem(await client.get("/schema/swagger-ui/js/nothing.js"))


async def test_the_document_is_rendered_once(client: httpx.AsyncClient) -> None:
    """The document needs no key, and rendering it as YAML takes 60 ms."""
    spent_s = []
    for _ in range(5):
        begun = time.process_time()
        await client.get("/schema/openapi.yaml")
        spent_s.append(time.process_time() - begun)
    assert min(spent_s[1:]) < spent_s[0] / 3


async def test_without_the_pages_files_the_document_is_shown(
    make_settings: Callable[..., Settings], logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain wheel without the dependency group `docs` lacks these files."""
    monkeypatch.setitem(sys.modules, "flask_openapi3_swagger", None)  # makes Python raise ImportError
    async with running(make_settings(), logs) as client:
        assert (await client.get("/schema")).json() == contract.read()
        problem(await client.get("/schema/swagger-ui/js/swagger-ui-bundle.js"))


async def test_the_document_is_served_as_it_is_committed(client: httpx.AsyncClient) -> None:
    """The JSON is equal, and the YAML is the same line by line."""
    assert (await client.get("/schema/openapi.json")).json() == contract.read()
    _, _, text = (contract.FOLDER / "chat-api.yaml").read_text().partition("\n")
    assert (await client.get("/schema/openapi.yaml")).text == text
