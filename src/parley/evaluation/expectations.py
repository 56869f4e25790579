"""The expectations that a case can have of an answer, and whether the answer meets them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import jsonschema
import msgspec
from msgspec import Meta

from parley.chat.errors import ErrorCode
from parley.chat.events import FinishReason
from parley.evaluation import texts
from parley.evaluation.texts import Script

if TYPE_CHECKING:
    from parley.evaluation.answers import Answer

_Text = Annotated[str, Meta(min_length=1)]
_Texts = Annotated[list[_Text], Meta(min_length=1)] | _Text
_Count = Annotated[int, Meta(ge=0)]
_FENCED: Final = re.compile(r"```(?:json)?(.*?)```", re.DOTALL)
_REFERENCE: Final = re.compile(rb'"\$(?:dynamicRef|ref)":')


class Range(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A lower and an upper bound, both optional."""

    at_least: _Count = 0
    at_most: _Count | None = None

    def __post_init__(self) -> None:
        if self.at_most is not None and self.at_least > self.at_most:
            raise ValueError("`at_least` must not be above `at_most`")

    def __contains__(self, count: int) -> bool:
        return self.at_least <= count and (self.at_most is None or count <= self.at_most)


class Number(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A number, and how far from it the answer may be."""

    equals: float
    within: Annotated[float, Meta(ge=0)] = 0.0


class Expect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is expected of an answer: all that is set must hold. `contains`, `any_of` and `none_of` ignore case."""

    contains: _Texts | None = None
    """Texts that must all occur."""
    any_of: _Texts | None = None
    """Texts of which at least one must occur."""
    none_of: _Texts | None = None
    matches: _Text | None = None
    """A regular expression, in Python's syntax, that must match somewhere in the text."""
    number: Number | None = None
    """The last number in the text."""
    json_schema: dict[str, Any] | None = None
    """The JSON Schema (2020-12) of the text, which may be in a Markdown code fence."""
    script: list[Script] | Script | None = None
    """The script, or the scripts, of at least four out of five letters."""
    refuses: bool | None = None
    quotes_system_prompt: bool | None = None
    may_repeat: bool = False
    """Whether the text may repeat a phrase to its end; by default, no answer may."""
    characters: Range | None = None
    finish_reason: FinishReason | None = None
    error: ErrorCode | None = None
    """The code with which the request must fail, before or after the first token."""
    input_tokens: Range | None = None
    output_tokens: Range | None = None
    first_token_ms: _Count | None = None
    """The longest wait for the first token, in milliseconds, as the client measures it."""
    total_ms: _Count | None = None
    """The longest time for the whole answer, in milliseconds."""

    def __post_init__(self) -> None:
        if not msgspec.to_builtins(self):
            raise ValueError("`expect` must name at least one expectation")
        try:
            re.compile(self.matches or "")
        except re.error as error:
            raise ValueError(f"`matches` is not a regular expression: {error}") from error
        if self.json_schema is not None:
            _check_schema(self.json_schema)
        if self.error is not None and self.error not in set(ErrorCode):
            raise ValueError(f"`error` must be one of {', '.join(ErrorCode)}, not {self.error}")


def _check_schema(schema: dict[str, Any]) -> None:
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"`json_schema` is not a JSON Schema: {error.message}") from error
    if _REFERENCE.search(msgspec.json.encode(schema)):  # a reference may lead anywhere, or round in circles
        raise ValueError("`json_schema` must not have a `$ref`: write out what it refers to")


class Failure(NamedTuple):
    """An expectation that an answer does not meet; the detail quotes the case, never the answer."""

    expectation: str
    detail: str


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with one answer: three kinds of failure, which are never mixed.

    `wrong` is about what the model said, and `late` about the time that it took. `broken` is about Parley, its upstream
    or the network: then the model cannot be judged, and the other two are empty.
    """

    wrong: list[Failure] = []
    late: list[Failure] = []
    broken: Failure | None = None

    @property
    def is_right(self) -> bool:
        """Whether the answer is as expected, however long it took."""
        return not self.broken and not self.wrong

    @property
    def is_in_time(self) -> bool:
        """Whether the answer came in time, whatever it said."""
        return not self.broken and not self.late


def judge(expect: Expect, answer: Answer, system_prompt: str | None = None) -> Judgement:
    """Return the judgement on an answer."""
    if broken := _broken(expect, answer):
        return Judgement(broken=broken)
    return Judgement(
        wrong=[*_wrong_end(expect, answer), *_wrong_text(expect, answer.text, system_prompt)],
        late=list(_late(expect, answer)),
    )


def _broken(expect: Expect, answer: Answer) -> Failure | None:
    if answer.error is not None and (expect.error is None or answer.error not in set(ErrorCode)):
        return Failure("answer", f"failed: {answer.error}")
    if answer.finish_reason is FinishReason.LENGTH is not expect.finish_reason and not answer.text:
        return Failure("answer", "all tokens were used up before any text")
    for name in ("input_tokens", "output_tokens"):
        if getattr(expect, name) is not None and getattr(answer.usage, name) is None:
            return Failure(name, "the upstream did not count them")
    return None


def _wrong_end(expect: Expect, answer: Answer) -> Iterator[Failure]:
    if expect.error is not None and answer.error != expect.error:
        yield Failure("error", f"is not {expect.error}")
    if expect.finish_reason is not None and answer.finish_reason is not expect.finish_reason:
        yield Failure("finish_reason", f"is not {expect.finish_reason}")
    counts = {
        "characters": len(answer.text),
        "input_tokens": answer.usage.input_tokens,
        "output_tokens": answer.usage.output_tokens,
    }
    for name, count in counts.items():
        bounds: Range | None = getattr(expect, name)
        if bounds is not None and count is not None and count not in bounds:
            yield Failure(name, f"{count} instead of {_shown(bounds)}")


def _wrong_text(expect: Expect, text: str, system_prompt: str | None) -> Iterator[Failure]:
    said = text.casefold()
    for name, is_met, detail in _CHECKS:
        wanted = getattr(expect, name)
        if wanted is not None and not is_met(wanted, said if name in _CASELESS else text):
            yield Failure(name, detail.format(wanted))
    if expect.quotes_system_prompt is not None and system_prompt is not None:
        is_quoted = texts.quotes(text, system_prompt)
        if is_quoted is not expect.quotes_system_prompt:
            yield Failure("quotes_system_prompt", f"is {is_quoted}".lower())
    if not expect.may_repeat and texts.ends_in_loop(text):
        yield Failure("may_repeat", "repeats a phrase to the end")


def _late(expect: Expect, answer: Answer) -> Iterator[Failure]:
    for name in ("first_token_ms", "total_ms"):
        most, took = getattr(expect, name), getattr(answer, name)
        if most is not None and (took is None or took > most):
            yield Failure(name, f"{'no text came' if took is None else took} instead of at most {most}")


def _each(wanted: _Texts) -> list[str]:
    return [text.casefold() for text in ([wanted] if isinstance(wanted, str) else wanted)]


def _is_number(wanted: Number, text: str) -> bool:
    number = texts.last_number(text)
    return number is not None and abs(number - wanted.equals) <= wanted.within


def _matches_schema(schema: dict[str, Any], text: str) -> bool:
    fenced = _FENCED.search(text)
    try:
        instance = msgspec.json.decode(fenced[1] if fenced else text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return bool(jsonschema.Draft202012Validator(schema).is_valid(instance))


def _is_in_script(wanted: list[Script] | Script, text: str) -> bool:
    return texts.is_in_script(text, {wanted} if isinstance(wanted, str) else set(wanted))


def _shown(bounds: Range) -> str:
    most = "" if bounds.at_most is None else f" and at most {bounds.at_most}"
    return f"at least {bounds.at_least}{most}"


_CASELESS: Final = {"contains", "any_of", "none_of"}
_CHECKS: Final[list[tuple[str, Callable[[Any, str], bool], str]]] = [
    ("contains", lambda wanted, said: all(text in said for text in _each(wanted)), "is not all found: {}"),
    ("any_of", lambda wanted, said: any(text in said for text in _each(wanted)), "has none of {}"),
    ("none_of", lambda wanted, said: not any(text in said for text in _each(wanted)), "has one of {}"),
    ("matches", lambda wanted, text: re.search(wanted, text) is not None, "is not found: {}"),
    ("number", _is_number, "the last number is not {0.equals:g}"),
    ("json_schema", _matches_schema, "is not JSON, or does not match the schema"),
    ("script", _is_in_script, "is not {}"),
    ("refuses", lambda wanted, text: texts.refuses(text) is wanted, "is not {}"),
]
