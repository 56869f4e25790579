"""Owns the wire cases: what real upstreams send, as data in `tests/wire_cases/`, and what must come of it.

Each file holds the cases of one kind. A case without `seen` is ours: a shape like those that were seen. `upstream` is
the list of steps that answer one request:

    role, stop, usage, done     an event: the opening one, a finish reason, the counts 9/4/13, `[DONE]`
    text; start, rest           events with the whole text of `ANSWER`; with its first word, and with what follows
    {delta: …, reason: …, …}    an event whose choice 0 has this delta and this finish reason; more are the event's
    {choice: …, …}              an event whose choice 0 has these fields
    {event: …}, {data: text}    an event of this JSON; of this text
    {body: text}, {hex: digits} these bytes of the body, as they are
    {raw: text}                 these bytes outside of the body
    {head: …}                   status line and headers, if not those of a stream: status, http, content_type, headers,
                                framing (`close` for a body that only the close ends)
    {status: …, …}              a whole response: json or body, content_type, headers
    {wait: seconds}, hang       silence
    close, reset                the end of the connection, without the end of the body; otherwise the body ends last
    {repeat: times, steps: …}
    {when: …, then: …}          an answer of its own for the first tries (`tries`) or if the request has a parameter
                                (`has`)

`format` says how events are written: `prefix` and `after` each, `indent` of their JSON; and how the body is sent:
`pieces` of so many bytes, `compressed`.
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
    """What must come of a case; a list names alternatives, and what is not named may be anything.

    With both `done` and `error`, either will do.
    """

    done: _OneOrMore = ()  # type: ignore[assignment]  # a default has to be immutable
    """The finish reason."""
    error: _OneOrMore = ()  # type: ignore[assignment]
    """The code."""
    text: str | None = None
    """`*` for any. Unset: all of `ANSWER` if the answer is done, anything if it failed."""
    reasoning: str | None = None
    """What the model thought, for a request that asks for it."""
    usage: _OneOrMore = _ANY
    """As `input/output/total`, with `cached=` and `reasoning=` after it; `none` if the upstream did not count."""
    retryable: bool | None = None
    retry_after_s: int | list[int | None] | msgspec.UnsetType | None = msgspec.UNSET
    detail: str = ""
    """A part of it."""
    tries: int | list[int] = ()  # type: ignore[assignment]
    """The requests that the upstream receives, with two retries."""
    tries_again: int | None = None
    """The same for a later request, if it differs."""

    @property
    def whole_text(self) -> str:
        """The text that a reader who understands everything finds."""
        return ANSWER if self.text is None else self.text


class Format(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How events are written, and how the body is sent."""

    prefix: str = "data: "
    after: str = "\n\n"
    indent: int | None = None
    pieces: int | None = None
    compressed: str | None = None


class WireCase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One shape of an upstream's answer."""

    name: str
    seen: str = ""
    """Where; empty if it is ours."""
    upstream: list[str | dict[str, Any]]
    expect: Expected
    format: Format = Format()
    settings: dict[str, Any] = {}
    kind: str = ""
    """The file that it stands in."""

    @property
    def has_an_answer(self) -> bool:
        """Whether a reader could find a whole answer in it, whatever it asked with."""
        return self.kind != "requests" and (bool(self.expect.done) or "text" in self.upstream)


def load() -> dict[str, WireCase]:
    """Return all cases by name, each kind's in their order."""
    cases = [
        msgspec.structs.replace(case, kind=path.stem)
        for path in sorted(_FOLDER.glob("*.yaml"))
        for case in msgspec.yaml.decode(path.read_bytes(), type=list[WireCase])
    ]
    by_name = {case.name: case for case in cases}
    assert len(by_name) == len(cases), "two cases have the same name"
    return by_name
