"""The embedded model's name, system prompt, temperature and parallel answers, with and without settings."""

from __future__ import annotations

from typing import Any

import pytest

from parley.chat.watch import Untraced
from parley.providers.embedded import Address, upstream_at
from parley.settings import Settings
from parley.telemetry.metrics import metrics

BY_DEFAULT = "You are a helpful assistant who speaks English."


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("smollm2-135m-instruct", BY_DEFAULT, 0.0, 2)),
        (
            {"model_path": "/models/other.Q4.gguf"},
            ("other.Q4", BY_DEFAULT, 0.0, 2),
        ),
        (
            {"model_path": "/models/other.gguf", "model": "mine", "system_prompt": "Be brief.", "temperature": 0.7},
            ("mine", "Be brief.", 0.7, 2),
        ),
        ({"workers": 2}, ("smollm2-135m-instruct", BY_DEFAULT, 0.0, 1)),
        ({"workers": 8}, ("smollm2-135m-instruct", BY_DEFAULT, 0.0, 1)),
    ],
)
def test_the_settings_take_precedence_over_the_embedded_models_own(
    settings: dict[str, Any], expected: tuple[str, str, float, int]
) -> None:
    """The workers divide the model's parallel answers between them; each gets at least one."""
    model = upstream_at(Address("http://127.0.0.1:9", "key"), Settings(**settings), metrics(), Untraced())
    assert (model.model_name, model.instructions, model.temperature, model.max_streams) == expected
