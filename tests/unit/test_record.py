"""The record of a request: which fields the layers may set, and which of them decides the outcome."""

from __future__ import annotations

import pytest

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.record import Record


@pytest.fixture
def record() -> Record:
    """Return the record of a request that has just arrived."""
    return Record(correlation_id="mine")


@pytest.mark.parametrize("name", ["chunk", "output_token", "outcomes"])
def test_what_the_record_has_no_field_for_cannot_be_noted(record: Record, name: str) -> None:
    """A misspelt name raises an error instead of leaving a value out of the log."""
    with pytest.raises(AttributeError):
        setattr(record, name, 1)


def test_a_request_is_cancelled_unless_it_ends(record: Record) -> None:
    """A request can be cancelled at any time, so this is the initial outcome."""
    assert (record.outcome, record.is_failure) == ("cancelled", True)
    record.end("completed")
    assert (record.outcome, record.is_failure) == ("completed", False)


@pytest.mark.parametrize("ending", ["completed", "failed", "client_disconnected"])
def test_what_a_layer_has_noted_outlives_the_response(record: Record, ending: str) -> None:
    """An error response that was sent stays a failure; a complete answer stays complete if the client then leaves."""
    record.outcome = ending  # type: ignore[assignment]  # parametrized with plain strings
    record.end("completed")
    record.end("failed")
    assert record.outcome == ending


def test_a_failure_is_noted_with_all_that_its_error_knows(record: Record) -> None:
    """If there are two failures, the last one is kept."""
    record.fail(ChatError(ErrorCode.OVERLOADED, reason="queue_full"))
    record.fail(ChatError(ErrorCode.UPSTREAM_ERROR, upstream_status=503))
    noted = record.outcome, record.error_code, record.reason, record.upstream_status
    assert noted == ("failed", "upstream_error", None, 503)


@pytest.mark.parametrize(
    ("status", "fault"), [(400, "caller"), (499, "caller"), (505, "caller"), (500, "parley"), (None, "parley")]
)
def test_a_failure_of_the_callers_is_none_of_parleys(record: Record, status: int | None, fault: str) -> None:
    """The status decides; without a status, the failure is Parley's."""
    record.fail(ChatError(ErrorCode.INTERNAL))
    record.status = status
    assert record.is_failure == (fault == "parley")
