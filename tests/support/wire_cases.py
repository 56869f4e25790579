"""The wire cases: what real upstreams send, as data in `tests/wire_cases/`, and the outcome that each must have.

Each file has the cases of one kind. We made up a case without `seen`; its form is similar to those that were seen.
`upstream` is the list of steps that answer one request:

    role, stop, usage, done     an event: the first one, a finish reason, the counts 9/4/13, `[DONE]`
    text; start, rest           events with the whole text of `ANSWER`; with its first word; with the rest
    {delta: …, reason: …, …}    an event whose choice 0 has this delta and finish reason; other fields are the event's
    {choice: …, …}              an event whose choice 0 has these fields
    {event: …}, {data: text}    an event with this JSON; with this text
    {body: text}, {hex: digits} these bytes in the body, as they are
    {raw: text}                 these bytes outside the body
    {head: …}                   status line and headers unless those of a stream: status, http, content_type, headers,
                                framing (`close` if only the end of the connection ends the body)
    {status: …, …}              a complete response: json or body, content_type, headers
    {wait: seconds}, hang       silence
    close, reset                end the connection, but not the body; without either, the body ends after the last step
    {repeat: times, steps: …}   these steps, this many times
    {when: …, then: …}          a different answer to the first requests (`tries`), or if the request has a parameter
                                (`has`)

`format` says how events are written (`prefix` and `after` each event, `indent` of their JSON) and how the body is sent
(in `pieces` of this many bytes, `compressed`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

_FOLDER: Final = Path(__file__).parents[1] / "wire_cases"
_ANY: Final = "*"

START: Final = "Mostly"
REST: Final = (" blue,", " some grey.")
ANSWER: Final = START + "".join(REST)

_OneOrMore = str | list[str]


class Expected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The outcome that a case must have; a list has alternatives, and what is not named may be anything.

    If both `done` and `error` are set, either is right.
    """

    done: _OneOrMore = ()  # type: ignore[assignment]  # a default must be immutable
    """The finish reason."""
    error: _OneOrMore = ()  # type: ignore[assignment]
    """The error code."""
    text: str | None = None
    """The text, or `*` for any. If unset: all of `ANSWER` if the answer is done, anything if it failed."""
    reasoning: str | None = None
    """The model's reasoning, for a request that asks for it."""
    usage: _OneOrMore = _ANY
    """The counts `input/output/total`, then `cached=` and `reasoning=`; `none` if the upstream reports no usage."""
    retryable: bool | None = None
    retry_after_s: int | list[int | None] | msgspec.UnsetType | None = msgspec.UNSET
    detail: str = ""
    """A part of the error's detail."""
    tries: int | list[int] = ()  # type: ignore[assignment]
    """The number of requests that the upstream receives, with two retries."""
    tries_again: int | None = None
    """The number for a later request, if it differs."""

    @property
    def whole_text(self) -> str:
        """The text that a client that understands everything would find."""
        return ANSWER if self.text is None else self.text


class Format(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How events are written, and how the body is sent."""

    prefix: str = "data: "
    after: str = "\n\n"
    indent: int | None = None
    pieces: int | None = None
    compressed: str | None = None


class WireCase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One form of an upstream's answer."""

    name: str
    seen: str = ""
    """Where the form was seen; empty if we made it up."""
    upstream: list[str | dict[str, Any]]
    expect: Expected
    format: Format = Format()
    settings: dict[str, Any] = {}
    kind: str = ""
    """The name of the file that contains the case."""

    @property
    def has_an_answer(self) -> bool:
        """Whether a client could find a complete answer in the response to any request."""
        return self.kind != "requests" and (bool(self.expect.done) or "text" in self.upstream)


def load() -> dict[str, WireCase]:
    """Return all cases by name, each kind's cases in their own order."""
    cases = [
        msgspec.structs.replace(case, kind=path.stem)
        for path in sorted(_FOLDER.glob("*.yaml"))
        for case in msgspec.yaml.decode(path.read_bytes(), type=list[WireCase])
    ]
    by_name = {case.name: case for case in cases}
    assert len(by_name) == len(cases), "two cases have the same name"
    return by_name
