"""Track which request parameters an upstream accepts: from its host, and from its refusals."""

from __future__ import annotations

from typing import Any, Final

from parley.providers.vocabulary import refused_by

# Two names for one limit: an upstream that refuses one gets the other.
_LIMITS: Final = ("max_tokens", "max_completion_tokens")
# Parameters that neither the settings nor an agent can set, as they would bypass the limits.
_OURS_ALONE: Final = (*_LIMITS, "n")


class Parameters:
    """The parameters that one upstream accepts."""

    def __init__(self, host: str) -> None:
        refused = refused_by(host)
        self._limits = sorted(_LIMITS, key=refused.__contains__)
        self.unwanted = set(refused.difference(_LIMITS))
        """The parameters that the upstream is known to refuse."""

    def fit(self, body: dict[str, Any], max_tokens: int, unwanted: set[str]) -> dict[str, Any]:
        """Return a request's body with its token limit, and without the unwanted parameters."""
        fitted = {name: value for name, value in body.items() if name not in unwanted and name not in _OURS_ALONE}
        known = [name for name in self._limits if name not in unwanted]
        return fitted | dict.fromkeys(known[:1], max_tokens)

    def can_do_without(self, name: str) -> bool:
        """Return whether a request can be sent again without this parameter; one of the two limits must stay."""
        return name != self._limits[1]
