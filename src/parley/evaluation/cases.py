"""The suite: its cases as data, read from a YAML file and checked strictly."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta

from parley.evaluation.expectations import Expect
from parley.wire.schema import ChatRequest, HistoryTurn

_Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}\Z")]


class SuiteError(Exception):
    """A file, or a selection of cases, cannot be used; the message says which, why, and where."""


class Case(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question, and what is expected of the answer."""

    id: _Name
    message: str
    history: list[HistoryTurn] = []
    max_output_tokens: int | None = None
    expect: Expect
    tags: list[_Name] = []
    why: str = ""
    """What the case is for."""

    def __post_init__(self) -> None:
        self.request()  # raises an error if Parley would refuse the request

    def request(self) -> ChatRequest:
        """Return the request that asks this question."""
        fields: dict[str, Any] = {"message": self.message, "history": self.history}
        if self.max_output_tokens is not None:
            fields["max_output_tokens"] = self.max_output_tokens
        return msgspec.convert(fields, ChatRequest)

    @property
    def hash(self) -> str:
        """The hash of the request and the expectations; the id, the tags and `why` do not count."""
        return hashlib.sha256(msgspec.json.encode([self.request(), self.expect], order="sorted")).hexdigest()[:12]


class Suite(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cases of a file."""

    name: str
    system_prompt: str | None = None
    """The text that `quotes_system_prompt` looks for."""
    cases: list[Case]

    @property
    def hash(self) -> str:
        """The hash of the ids and hashes of all cases."""
        return hashlib.sha256("\n".join(sorted(f"{case.id} {case.hash}" for case in self.cases)).encode()).hexdigest()[
            :12
        ]

    def only(self, tags: list[str], ids: list[str]) -> list[Case]:
        """Return the cases that have one of the tags and one of the ids; an empty list matches every case."""
        known_tags, known_ids = {tag for case in self.cases for tag in case.tags}, {case.id for case in self.cases}
        if unknown := sorted({*tags} - known_tags) + sorted({*ids} - known_ids):
            raise SuiteError(f"The suite has no such tag or case: {', '.join(unknown)}.")
        chosen = [case for case in self.cases if (not tags or {*tags} & {*case.tags}) and (not ids or case.id in ids)]
        if not chosen:
            raise SuiteError("No case has both one of these tags and one of these ids.")
        return chosen


class _Raw(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A suite whose cases have yet to be checked, one by one."""

    system_prompt: Annotated[str, Meta(min_length=1)] | None = None
    max_output_tokens: int | None = None
    cases: Annotated[list[dict[str, Any]], Meta(min_length=1)]


def load(path: str) -> Suite:
    """Read a suite.

    Raises:
        SuiteError: if the file cannot be read, or something in it is wrong.
    """
    try:
        document = yaml.load(Path(path).read_text("utf-8-sig"), _StrictLoader)  # noqa: S506  # it is a safe loader
        raw = msgspec.convert(document, _Raw)
    except OSError as error:
        raise SuiteError(f"{path}: cannot be read: {error.strerror}.") from error
    except msgspec.ValidationError as error:
        raise SuiteError(f"{path}: {error}.") from error
    # Impossible dates and long numbers raise `ValueError`.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SuiteError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    cases: dict[str, Case] = {}
    for number, fields in enumerate(raw.cases, start=1):
        where = f"{path}: case {number} (`{fields.get('id', '')}`)"
        try:
            case = msgspec.convert({"max_output_tokens": raw.max_output_tokens, **fields}, Case)
        except msgspec.ValidationError as error:
            raise SuiteError(f"{where}: {error}.") from error
        if case.id in cases:
            raise SuiteError(f"{where}: another case has the same id.")
        if case.expect.quotes_system_prompt is not None and raw.system_prompt is None:
            raise SuiteError(f"{where}: `quotes_system_prompt` needs the suite's `system_prompt`.")
        cases[case.id] = case
    return Suite(name=Path(path).stem, system_prompt=raw.system_prompt, cases=[*cases.values()])


class _StrictLoader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """Reads plain data, and refuses a key that occurs twice in a mapping; otherwise, YAML would drop one of them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002  # the parent's signature
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := sorted({str(name) for name in names if names.count(name) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"found {twice[0]!r} twice", node.start_mark)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping
