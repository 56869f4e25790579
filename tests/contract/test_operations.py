"""Every operation does what the contract says, as schemathesis tests it.

Schemathesis takes seconds to analyse the contract when pytest imports this module, so `just test-quick` leaves it out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import schemathesis
from anyio.from_thread import start_blocking_portal
from schemathesis.config import SchemathesisConfig

from parley.settings import LONGEST_S, MOST_OUTPUT_TOKENS, Settings
from parley.testing.upstream import ScriptedUpstream
from tests.support import contract
from tests.support.running import running

if TYPE_CHECKING:
    from collections.abc import Iterator

# Parley may refuse a body for its size or media type before it validates the content.
REFUSALS = {"checks": {"negative_data_rejection": {"expected-statuses": [400, 413, 415]}}}


@schemathesis.hook
def before_load_schema(_: schemathesis.HookContext, document: dict[str, Any]) -> None:
    """Describe whole events, as schemathesis expects; the contract describes only their data."""
    stream = document["paths"]["/chat"]["post"]["responses"]["200"]["content"]["text/event-stream"]
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": stream["schema"]}
    tags = list(document["components"]["schemas"]["StreamChunk"]["discriminator"]["mapping"])
    stream["schema"] = {
        "type": "object",
        "properties": {"event": {"enum": tags}, "data": data},
        "required": ["event", "data"],
        "additionalProperties": False,
    }


api = schemathesis.openapi.from_path(contract.FOLDER / "chat-api.yaml", config=SchemathesisConfig.from_dict(REFUSALS))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Run Parley in a separate thread, because schemathesis blocks."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(ScriptedUpstream()) as upstream,
        portal.wrap_async_context_manager(
            running(
                Settings(
                    openai_base_url=upstream.url,
                    model="scripted-1",
                    request_timeout_s=LONGEST_S,
                    max_output_tokens=MOST_OUTPUT_TOKENS,
                )
            )
        ) as client,
    ):
        yield str(client.base_url)


@pytest.mark.long
@api.parametrize()
@hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
def test_every_operation_does_what_the_contract_says(case: schemathesis.Case[Any], address: str) -> None:
    """Schemathesis sends valid and invalid requests, and runs all its checks."""
    if isinstance(case.body, dict):
        tokens, time = case.body.get("max_output_tokens"), case.body.get("timeout_s")
        if isinstance(tokens, float) and tokens.is_integer():
            case.body["max_output_tokens"] = int(
                tokens
            )  # JSON Schema cannot demand "written without a fraction", which the contract's text does
        if isinstance(time, int | float) and time is not True and 0 < time < 20:
            case.body["timeout_s"] = 20  # with less, a 504 may be right
    case.call_and_validate(base_url=address)
