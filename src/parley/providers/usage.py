"""Read an upstream's own token counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from parley.chat.events import Usage, UsageSource

if TYPE_CHECKING:
    from parley.providers.stream_decoding import TokenCounts

# A count above this, or below 0, is treated as unknown: metrics and quotas add counts up and do not expect such values.
_LARGEST: Final = 1 << 53


def usage_of(counts: TokenCounts) -> Usage | None:
    """Return the usage; `None` if input, output and total are all 0 or unknown, as no real count is."""
    read, written = counts.prompt_tokens_details, counts.completion_tokens_details
    usage = Usage(
        input_tokens=_sane(counts.prompt_tokens),
        output_tokens=_sane(counts.completion_tokens),
        total_tokens=_sane(counts.total_tokens),
        cached_input_tokens=_sane(
            (read and read.cached_tokens) or counts.prompt_cache_hit_tokens or counts.cached_tokens
        ),
        reasoning_tokens=_sane((written and written.reasoning_tokens) or counts.reasoning_tokens),
        source=UsageSource.UPSTREAM,
    )
    return usage if usage.input_tokens or usage.output_tokens or usage.total_tokens else None


def _sane(count: int | None) -> int | None:
    return count if count is not None and 0 <= count <= _LARGEST else None
