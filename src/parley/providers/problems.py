"""Owns the reading of an upstream's error bodies: whatever their shape, what they say."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

# An honest body has less.
_MOST_BYTES: Final = 65_536
_MOST_NODES: Final = 500
_MOST_CHARACTERS: Final = 4000
_NAME: Final = re.compile(r"[A-Za-z][\w.-]{0,79}")

_NAMES: Final = {
    "code",
    "type",
    "status",
    "status_code",
    "reason",
    "error",
    "error_type",
    "error_code",
    "errorcode",
    "http_code",
    "limit_source",
    "object",
}
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
    "status_msg",
}
_ERRORS: Final = {"error", "errors", "detail"}
_NO_ERRORS: Final = (None, "", False, 0)
_PARAMETERS: Final = {"param", "loc", "parameter"}
_WAITS: Final = {"retrydelay", "x-ratelimit-reset"}  # Gemini's; and the header that OpenRouter writes into a body
_STATUSES: Final = range(400, 600)
_LEAST_ERROR: Final = 400  # MiniMax has numbers of its own, from 1000
_STATUS_TEXTS: Final = frozenset(map(str, _STATUSES))


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
    is_error: bool = False
    """Whether a field says that it is an error."""
    retry_after: str | None = None
    """The wait that it asks for, as it writes it."""


def read(body: bytes) -> Problem:
    """Read an error body: an object that is nested or flat, a list of them, a string, or no JSON at all."""
    try:
        decoded = msgspec.json.decode(body) if len(body) <= _MOST_BYTES else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Problem(text=body[:_MOST_CHARACTERS].decode(errors="replace").lower())
    problem = Problem()
    nodes = [("error", decoded)]
    for number, (key, value) in enumerate(nodes):
        if number > _MOST_NODES:
            break
        _note(problem, key, value)
        problem.is_error |= number > 0 and key in _ERRORS and value not in _NO_ERRORS
        problem.is_error |= key == "status_code" and isinstance(value, int) and value >= _LEAST_ERROR
        if len(nodes) > _MOST_NODES:
            continue
        if isinstance(value, dict):
            nodes += ((str(name).lower(), member) for name, member in value.items())
        elif isinstance(value, list):
            nodes += ((key, member) for member in value)
        elif isinstance(value, str) and key in _TEXTS and value.startswith(("{", "[")):
            nodes.append((key, _decoded(value)))
    problem.text = problem.text[:_MOST_CHARACTERS].lower()
    return problem


def _decoded(text: str) -> Any:
    """Decode the error of somebody else that a gateway quotes."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None


def _note(problem: Problem, key: str, value: Any) -> None:
    if isinstance(value, str):
        if key in _NAMES and (key != "error" or _NAME.fullmatch(value)):
            problem.names += [value[:_MOST_CHARACTERS].lower()] if value else []
        elif key in _TEXTS:
            problem.text += f"{value[:_MOST_CHARACTERS]}\n"
        elif key in _PARAMETERS:
            problem.parameters.append(value.lower())
    if key in _WAITS and isinstance(value, int | float | str):
        problem.retry_after = str(value)
    if key in _NAMES and (value in _STATUSES or (isinstance(value, str) and value in _STATUS_TEXTS)):
        problem.status = problem.status or int(value)
