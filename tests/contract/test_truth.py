"""The contract is valid, and its examples and chunks match those of a running Parley."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jsonschema_rs
import openapi_spec_validator
import pytest

from parley.testing.upstream import answer
from tests.support import contract
from tests.support.running import decode_chunk, kind, read_chunks

if TYPE_CHECKING:
    import httpx

    from parley.testing.exchange import Script
    from parley.testing.upstream import ScriptedUpstream


def test_the_document_is_valid_openapi() -> None:
    """The schema of the OpenAPI specification decides."""
    openapi_spec_validator.validate(contract.read())


def test_every_example_has_the_shape_it_is_an_example_of() -> None:
    """Each body has an example, except the health of a healthy Parley."""
    operations = [operation for path in contract.read()["paths"].values() for operation in path.values()]
    for operation in operations:
        for body in (operation.get("requestBody", {}), *operation["responses"].values()):
            for media_type in body.get("content", {}).values():
                shape = media_type["schema"]["$ref"].rpartition("/")[2]
                examples = media_type.get("examples", {})
                assert examples or shape == "Health"
                for example in examples.values():
                    contract.check(shape, example["value"])


async def test_the_example_of_a_refusal_is_one(client: httpx.AsyncClient) -> None:
    """The example matches word for word, except the id; it shows the most common mistake."""
    refusals = contract.read()["paths"]["/chat"]["post"]["responses"]["400"]["content"]["application/json"]["examples"]
    example = refusals["invalid_request"]["value"]
    headers = {"X-Correlation-ID": example["correlation_id"]}
    assert (await client.post("/chat", json={"message": " "}, headers=headers)).json() == example


def test_an_example_says_how_long_to_wait_where_parley_always_says_it() -> None:
    """These two errors always say how long to wait."""
    responses = contract.read()["paths"]["/chat"]["post"]["responses"]
    for status, code in (("429", "rate_limited"), ("503", "overloaded")):
        assert responses[status]["content"]["application/json"]["examples"][code]["value"]["retry_after_s"]


def test_headers_are_promised_of_the_errors_that_have_them() -> None:
    """Retry-After is promised for chats; a failed readiness check has only the headers of all responses."""
    paths = contract.read()["paths"]
    assert set(paths["/chat"]["post"]["responses"]["503"]["headers"]) == {
        "X-Correlation-ID",
        "Cache-Control",
        "Retry-After",
    }
    assert set(paths["/health/ready"]["get"]["responses"]["503"]["headers"]) == {"X-Correlation-ID", "Cache-Control"}


RECORDED: dict[str, tuple[Script, list[str]]] = {
    "whole": (answer("Hello"), ["start", "text", "done"]),
    "cut short by its length": (answer("Hel", finish_reason="length"), ["start", "text", "done"]),
    "broken off": (answer("Hel", finish_reason=None), ["start", "text", "error"]),
}


@pytest.mark.parametrize(("script", "kinds"), RECORDED.values(), ids=RECORDED)
async def test_a_recorded_stream_fits_the_contract(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, script: Script, kinds: list[str]
) -> None:
    """The streams of all other tests pass the same check."""
    upstream.script = script
    recorded = (await client.post("/chat", json={"message": "hi"})).content
    assert [kind(chunk) for chunk in read_chunks(recorded)] == kinds


def test_a_chunk_that_does_not_fit_the_contract_is_found() -> None:
    """The check of the streams can fail."""
    for chunk in (
        '{"type":"text","seq":1}',
        '{"type":"text","seq":"1","text":"a"}',
        '{"type":"delta","seq":1,"text":"a"}',
    ):
        with pytest.raises(jsonschema_rs.ValidationError):
            decode_chunk(chunk)
