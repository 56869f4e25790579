"""Read the settings from environment variables, and describe each variable to the operator."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect

from parley.settings import Secret, SecretText, Settings
from parley.validation import invalid_settings

_PREFIX: Final = "PARLEY_"
_UNPREFIXED: Final = ("openai_", "otel_")
_LISTS: Final = ("api_keys", "cors_origins", "trusted_proxies")
_BOOLEANS: Final = {"yes": "true", "on": "true", "no": "false", "off": "false"}


class SettingsError(Exception):
    """The environment holds values that Parley cannot start with; the message has one line for each."""


def load_env_file() -> None:
    """Set the variables of the file `.env` in the working directory, if it exists; keep variables that are set.

    Raises:
        SettingsError: if the file cannot be read.
    """
    if not Path(".env").is_file():
        return
    from dotenv import load_dotenv  # noqa: PLC0415  # its import would make every health check a fifth slower

    try:
        load_dotenv(".env", interpolate=False)
    except (OSError, ValueError):  # not UTF-8, or with a NUL
        raise SettingsError(".env: it cannot be read as text in UTF-8.") from None


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Read the settings; an empty variable counts as unset.

    Raises:
        SettingsError: if a value is wrong; the message has a line for each, and never contains a secret.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for variable in variables():
        text = environment.get(variable.name, "")
        if not text:
            continue
        try:
            text.encode()  # bytes that are not UTF-8 could not be sent to an upstream
            values[variable.field] = msgspec.convert(
                _normalised(variable, text), variable.type, strict=False, dec_hook=_decode
            )
        except (msgspec.ValidationError, UnicodeEncodeError):
            # Do not log what may hold a secret, such as a key or an address, nor the system prompt.
            is_private = variable.field.endswith(("_key", "_keys", "_url", "_prompt", "_endpoint", "_headers", "_body"))
            shown = "its value" if is_private else repr(text[:100])
            problems.append(f"{variable.name}: {shown} is not allowed; it must be {variable.allowed}.")
    if path := values.get("api_keys_file"):
        try:
            values["api_keys"] = _with_keys_of_file(values.get("api_keys"), path)
        except OSError:
            problems.append(f"PARLEY_API_KEYS_FILE: {path} cannot be read.")
        except ValueError:
            problems.append(
                f"PARLEY_API_KEYS_FILE: {path} must hold keys, one a line: printable ASCII without blanks and commas."
            )
    settings = Settings(**values)
    problems += invalid_settings(settings)
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


class Variable(NamedTuple):
    """One setting as the operator sees it."""

    name: str
    field: str
    type: Any
    default: object
    allowed: str
    description: str


def variables() -> Iterator[Variable]:
    """Yield each setting, with the name of its variable, its type, default, allowed values and description."""
    described = inspect.type_info(Settings)
    assert isinstance(described, inspect.StructType)  # noqa: S101  # narrows the type for mypy
    annotations = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    for field in described.fields:
        name = field.name.upper() if field.name.startswith(_UNPREFIXED) else _PREFIX + field.name.upper()
        schema = field.type.extra_json_schema or {} if isinstance(field.type, inspect.Metadata) else {}
        yield Variable(
            name,
            field.name,
            annotations[field.name],
            field.default,
            _allowed(field.type),
            schema.get("description", ""),
        )


def unknown_variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """Yield each PARLEY_ variable that is not a setting, with the setting that was probably meant, or `None`."""
    known = {variable.name.removeprefix(_PREFIX): variable.name for variable in variables()}
    for name in sorted(environment):
        if name.startswith(_PREFIX) and name not in known.values():
            meant = difflib.get_close_matches(name.removeprefix(_PREFIX), known, n=1)
            yield name, known[meant[0]] if meant else None


def _normalised(variable: Variable, text: str) -> str:
    """Return a value in the form that msgspec expects: words in lower case, lists without spaces."""
    if variable.field in _LISTS:
        return re.sub(", +", ",", text)
    kind = inspect.type_info(variable.type)
    match kind.type if isinstance(kind, inspect.Metadata) else kind:
        case inspect.LiteralType():
            return text.lower()
        case inspect.BoolType():
            return _BOOLEANS.get(text.lower(), text)
        case _:
            return text


def _with_keys_of_file(keys: Secret | None, path: str) -> Secret:
    found = [line.strip() for line in Path(path).read_text("utf-8-sig").splitlines() if line.strip()]
    if not found or any("," in key for key in found):
        raise ValueError
    for key in found:
        _decode(Secret, key)
    return Secret(",".join([*([keys.reveal()] if keys else []), *found]))


def _decode(kind: type, value: object) -> object:
    text = str(value)
    if kind is SecretText:
        return SecretText(text)
    if kind is not Secret or not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError  # a header cannot carry it; msgspec raises a ValidationError from this
    return Secret(text)


def _allowed(kind: inspect.Type) -> str:  # noqa: PLR0911  # one return for each kind
    match kind:
        case inspect.Metadata(extra={"allowed": str(allowed)}):
            return allowed
        case inspect.Metadata():
            return _allowed(kind.type)
        case inspect.UnionType():
            return next(_allowed(member) for member in kind.types if not isinstance(member, inspect.NoneType))
        case inspect.IntType():
            return f"a whole number from {kind.ge} to {kind.le}"
        case inspect.FloatType():
            return f"a number {f'from {kind.ge:g}' if kind.gt is None else f'above {kind.gt:g}, up'} to {kind.le:g}"
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType():
            return "one of " + ", ".join(map(str, kind.values))
        case inspect.CustomType() if kind.cls is SecretText:
            return "any text in UTF-8"
        case inspect.CustomType():
            return "printable ASCII without blanks"
        case _:
            return "any text in UTF-8"
