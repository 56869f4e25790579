"""Read what an upstream's error bodies say, whatever their shape."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

# Honest bodies are smaller.
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
_WAITS: Final = {"retrydelay", "x-ratelimit-reset"}  # Gemini's field, and a header that OpenRouter copies into the body
_STATUSES: Final = range(400, 600)
_LEAST_ERROR: Final = 400  # MiniMax uses its own numbers, from 1000
_STATUS_TEXTS: Final = frozenset(map(str, _STATUSES))


class Problem(msgspec.Struct):
    """An error, as the upstream describes it."""

    names: list[str] = []
    """The error's codes and types, in lower case."""
    text: str = ""
    """The error's text, in lower case; it may quote a message."""
    parameters: list[str] = []
    """The request parameters that the error names, in lower case."""
    status: int | None = None
    """The HTTP status that the body names; the response itself may have another one."""
    is_error: bool = False
    """Whether a field says that this is an error."""
    retry_after: str | None = None
    """The wait that the upstream asks for, as it is written in the body."""


def read(body: bytes) -> Problem:
    """Read an error body: a nested or flat object, a list of objects, a string, or text that is not JSON."""
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
    """Decode another server's error that a gateway quotes as a string; `None` if it is not JSON."""
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
