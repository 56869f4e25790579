"""Checks that msgspec cannot express: settings that conflict, and the parts of lists and JSON objects."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from parley.settings import Settings

_SHORTEST_KEY: Final = 16
_TOO_SHORT: Final = f"has fewer than {_SHORTEST_KEY} characters; `openssl rand -hex 32` makes one."
_FRAMING: Final = frozenset(
    """accept-encoding connection content-encoding content-length expect host te trailer transfer-encoding
    upgrade""".split()  # noqa: SIM905  # a list would take ten lines
)


def invalid_settings(settings: Settings) -> Iterator[str]:
    """Yield one line for each conflict between settings, and for each setting with an invalid part."""
    yield from _of_extras(settings)
    yield from _of_callers(settings)
    yield from _of_models(settings)


def _of_callers(settings: Settings) -> Iterator[str]:
    for network in settings.trusted_proxies.split(",") if settings.trusted_proxies else ():
        try:
            ip_network(network)
        except ValueError:
            yield f"PARLEY_TRUSTED_PROXIES: {network!r} is not an address, and not a network such as 10.0.0.0/8."
    keys = settings.keys()
    if settings.api_keys is not None and not keys:
        yield "PARLEY_API_KEYS: there is no key in it; unset it to let anyone in."
    if any(len(key) < _SHORTEST_KEY for key in keys):
        yield f"PARLEY_API_KEYS: a key {_TOO_SHORT}"
    if settings.metrics_key and len(settings.metrics_key.reveal()) < _SHORTEST_KEY:
        yield f"PARLEY_METRICS_KEY: it {_TOO_SHORT}"


def _of_models(settings: Settings) -> Iterator[str]:
    if (settings.fallback_base_url or settings.fallback_api_key) and not settings.fallback_model:
        yield "PARLEY_FALLBACK_MODEL: not set, but the fallback's address or key is; set it to a model it serves."
    if settings.embedded:
        if settings.fallback_model and not settings.fallback_base_url and not settings.fallback_api_key:
            yield "PARLEY_FALLBACK_BASE_URL: not set, but the embedded model has no other beside it; set it too."
        return
    if settings.model_path:
        given = "OPENAI_BASE_URL" if settings.openai_base_url else "OPENAI_API_KEY"
        yield f"PARLEY_MODEL_PATH: it embeds a model, but {given} names an upstream; unset one of the two."
    if not settings.model:
        yield (
            "PARLEY_MODEL: not set, but OPENAI_BASE_URL chooses an upstream; set it to a model the upstream serves, "
            "or unset OPENAI_BASE_URL to use the embedded model."
        )


def _of_extras(settings: Settings) -> Iterator[str]:
    try:
        settings.added_fields()
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        yield "PARLEY_EXTRA_BODY: it must be a JSON object."
    try:
        framing = sorted(_FRAMING.intersection(map(str.lower, settings.added_headers())))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        yield "PARLEY_EXTRA_HEADERS: it must be a JSON object of header names and values."
    else:
        if framing:
            yield f"PARLEY_EXTRA_HEADERS: it must not set {', '.join(framing)}; Parley sets what frames a request."
