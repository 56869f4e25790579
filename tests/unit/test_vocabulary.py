"""The parameters that well-known upstream hosts are known to refuse."""

from __future__ import annotations

import pytest

from parley.providers.vocabulary import refused_by


@pytest.mark.parametrize(
    ("host", "refused"),
    [
        ("api.openai.com", {"max_tokens"}),
        ("eu.api.openai.com", {"max_tokens"}),
        ("somebody.openai.azure.com", {"max_tokens"}),
        ("somebody.cognitiveservices.azure.com", {"max_tokens"}),
        ("api.mistral.ai", {"max_completion_tokens", "stream_options"}),
        ("notapi.openai.com", set()),
        ("api.openai.com.example", set()),
        ("somebody.services.ai.azure.com", set()),
        ("127.0.0.1", set()),
        ("", set()),
    ],
)
def test_known_hosts_and_those_below_them_refuse_what_is_known(host: str, refused: set[str]) -> None:
    """Parley sends other hosts the usual parameters and learns from their errors."""
    assert refused_by(host) == refused
