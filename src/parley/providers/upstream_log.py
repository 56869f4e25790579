"""Log an upstream's errors: their names, and their text only if the operator enables that."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import structlog

from parley.providers.failures import error_type
from parley.providers.key_redaction import redact_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    import aiohttp

_log: Final = structlog.stdlib.get_logger(__name__)

_MAX_CHARACTERS: Final = 2000
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_WORD: Final = re.compile(r"[A-Za-z_]{1,32}")


class UpstreamLog:
    """Logs errors without the upstream's text, which may quote a message, or with the text but without the secrets."""

    def __init__(self, secrets: Iterable[str], *, has_text: bool) -> None:
        self._secrets = [*secrets] or [""]
        self._has_text = has_text

    def refused(self, response: aiohttp.ClientResponse, body: bytes) -> None:
        """Log an error of the upstream."""
        request_id = response.headers.get("X-Request-ID", "")
        _log.warning(
            "upstream_refused",
            upstream_status=response.status,
            upstream_request_id=request_id if _REQUEST_ID.fullmatch(request_id) else None,
            upstream_error_type=error_type(body),
            **self._text(body),
        )

    def undecodable(self, data: bytes) -> None:
        """Log an event that cannot be decoded."""
        _log.warning("upstream_undecodable", **self._text(data))

    def unknown_ending(self, word: str) -> None:
        """Log a finish reason that Parley does not know; `word` names it if it is a single word."""
        text = self._text(word.encode(errors="replace"))
        _log.warning("upstream_unknown_ending", word=word if _WORD.fullmatch(word) else None, **text)

    def _text(self, said: bytes) -> dict[str, str]:
        if not self._has_text:
            return {}
        text = said.decode(errors="replace")
        for secret in self._secrets:
            text = redact_key(secret, text)
        return {"upstream_text": text[:_MAX_CHARACTERS]}
