"""Owns the reading of an upstream's error bodies: whatever their shape, what they say."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

# An honest body has less.
_MOST_NODES: Final = 500
_MOST_CHARACTERS: Final = 4000
_NAME: Final = re.compile(r"[A-Za-z][\w.-]{0,79}")

_NAMES: Final = {"code", "type", "status", "reason", "error", "error_type", "error_code", "errorcode"}
_TEXTS: Final = {
    "message",
    "msg",
    "detail",
    "description",
    "error",
    "error_description",
    "error_msg",
    "title",
    "errors",
    "raw",
}
_PARAMETERS: Final = {"param", "loc", "parameter"}
_STATUSES: Final = range(400, 600)


class Problem(msgspec.Struct):
    """An error, as the upstream describes it."""

    names: list[str] = []
    """What it calls the error, in small letters: codes and types."""
    text: str = ""
    """Its words, in small letters; they may quote a message."""
    parameters: list[str] = []
    """The parameters of the request that it names."""
    status: int | None = None
    """The HTTP status that the body names, which may have come with another one."""
    retry_after: str | None = None
    """The wait that it asks for, as it writes it."""

    @property
    def is_none(self) -> bool:
        """Whether the body says nothing of an error."""
        return not (self.names or self.text or self.status)


def read(body: bytes) -> Problem:
    """Read an error body: an object that is nested or flat, a list of them, a string, or no JSON at all."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Problem(text=body[:_MOST_CHARACTERS].decode(errors="replace").lower())
    problem = Problem()
    nodes = [("error", decoded)]
    for number, (key, value) in enumerate(nodes):
        if number > _MOST_NODES:
            break
        _note(problem, key, value)
        if isinstance(value, dict):
            nodes += ((str(name).lower(), member) for name, member in value.items())
        elif isinstance(value, list):
            nodes += ((key, member) for member in value)
    problem.text = problem.text[:_MOST_CHARACTERS].lower()
    return problem


def _note(problem: Problem, key: str, value: Any) -> None:
    if isinstance(value, str):
        if key in _NAMES and (key != "error" or _NAME.fullmatch(value)):
            problem.names += [value[:_MOST_CHARACTERS].lower()] if value else []
        elif key in _TEXTS:
            problem.text += f"{value[:_MOST_CHARACTERS]}\n"
        elif key in _PARAMETERS:
            problem.parameters.append(value.lower())
        elif key == "retrydelay":
            problem.retry_after = value
    if key in _NAMES and str(value).isdecimal() and len(str(value)) == 3 and int(value) in _STATUSES:  # noqa: PLR2004
        problem.status = problem.status or int(value)
