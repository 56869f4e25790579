"""Suites: what a file of cases may hold, and the errors for a wrong one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from parley.evaluation.cases import Case, Suite, SuiteError, load
from parley.evaluation.expectations import Expect
from tests.support.evals import CONTRACT, EMBEDDED

if TYPE_CHECKING:
    from pathlib import Path

ONE = "cases: [{id: a, message: Hi, expect: {contains: x}}]"


def written(folder: Path, text: str) -> str:
    """Write a suite and return its path."""
    path = folder / "mine.yaml"
    path.write_text(text, "utf-8")
    return str(path)


def test_a_suite_is_read(tmp_path: Path) -> None:
    """Settings of the suite apply to all cases, unless a case has its own."""
    suite = load(
        written(
            tmp_path,
            """
            system_prompt: Be kind.
            max_output_tokens: 50
            cases:
              - id: first
                message: And then?
                history: [{role: user, content: Once}, {role: assistant, content: upon}]
                max_output_tokens: 9
                expect: {contains: [a, b], output_tokens: {at_most: 9}}
                tags: [stories]
                why: It is asked first.
              - {id: second, message: Hi, expect: {quotes_system_prompt: false}}
            """,
        )
    )
    first, second = suite.cases
    assert (suite.name, suite.system_prompt) == ("mine", "Be kind.")
    assert (first.request().max_output_tokens, second.request().max_output_tokens) == (9, 50)
    assert [turn.content for turn in first.request().history or ()] == ["Once", "upon"]
    assert first.expect.contains == ["a", "b"]
    assert suite.only(["stories"], []) == [first]
    assert suite.only([], ["second"]) == [second]
    with pytest.raises(SuiteError, match="No case has both"):
        suite.only(["stories"], ["second"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cases: [", "is not YAML"),
        ("cases: []", "length >= 1"),
        ("[]", "got `array`"),
        ("cases: [5]", "got `int`"),
        (ONE.replace("Hi", "2024-13-45"), "is not YAML"),
        (ONE.replace("Hi", "9" * 5000), "is not YAML"),
        (f"name: x\n{ONE}", "unknown field `name`"),
        (ONE.replace("message", "mesage"), "case 1 (`a`): Object contains unknown field `mesage`"),
        (ONE.replace("contains", "contain"), "unknown field `contain` - at `$.expect`"),
        (ONE.replace("contains: x", "contains: 4"), "at `$.expect.contains`"),
        (ONE.replace("contains: x", ""), "`expect` must name at least one expectation"),
        (ONE.replace("contains: x", "any_of: []"), "at `$.expect.any_of`"),
        (ONE.replace("contains: x", "matches: '('"), "`matches` is not a regular expression"),
        (ONE.replace("contains: x", "script: klingon"), "klingon"),
        (ONE.replace("contains: x", "error: nonsense"), "nonsense"),
        (ONE.replace("contains: x", "json_schema: {type: 5}"), "`json_schema` is not a JSON Schema"),
        (
            ONE.replace("contains: x", 'json_schema: {$ref: "http://example.com/s"}'),
            "must not have a `$ref`",
        ),
        (ONE.replace("contains: x", "json_schema: {pattern: '('}"), "`json_schema` is not a JSON Schema"),
        (ONE.replace("contains: x", "characters: {at_least: 2, at_most: 1}"), "`at_least` must not be above `at_most`"),
        (ONE.replace("contains: x", "quotes_system_prompt: false"), "needs the suite's `system_prompt`"),
        (ONE.replace("x}", "x, contains: y}"), "found 'contains' twice"),
        (ONE.replace("id: a", "id: A b"), "at `$.id`"),
        (ONE.replace("Hi", '" "'), "at `$.message`"),
        (ONE.replace("expect", "max_output_tokens: 0, expect"), "at `$.max_output_tokens`"),
        (ONE.replace("expect", "history: [{role: system, content: x}], expect"), "at `$.history[0].role`"),
        (ONE[:-1] + ", {id: a, message: Ho, expect: {contains: y}}]", "case 2 (`a`): another case has the same id"),
        ("cases: [{id: a, message: !!python/name:os.system x, expect: {contains: x}}]", "is not YAML"),
    ],
)
def test_what_is_wrong_with_a_suite_is_said_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    """The suite is checked before any request is sent."""
    path = written(tmp_path, text)
    with pytest.raises(SuiteError) as told:
        load(path)
    assert str(told.value).startswith(f"{path}: ")
    assert message in str(told.value)


def test_a_suite_that_is_not_there_is_said(tmp_path: Path) -> None:
    """The error names the path."""
    with pytest.raises(SuiteError, match=r"none\.yaml: cannot be read: No such file or directory\."):
        load(str(tmp_path / "none.yaml"))


def test_a_tag_that_no_case_has_is_said() -> None:
    """Otherwise the run would have no cases."""
    suite = Suite(name="s", cases=[Case(id="a", message="Hi", expect=Expect(contains="x"), tags=["t"])])
    with pytest.raises(SuiteError, match=r"no such tag or case: u, b\."):
        suite.only(["t", "u"], ["a", "b"])


def test_the_hash_is_of_what_is_asked_and_expected() -> None:
    """Tags, the reason, and the order of the cases do not change the hash."""
    case = Case(id="a", message="Hi", expect=Expect(contains="x"))
    other = Case(id="b", message="Ho", expect=Expect(contains="x"))
    assert case.hash == msgspec.structs.replace(case, tags=["t"], why="So.").hash
    assert case.hash != msgspec.structs.replace(case, expect=Expect(contains="y")).hash
    assert case.hash != msgspec.structs.replace(case, max_output_tokens=5).hash
    assert Suite(name="s", cases=[case, other]).hash == Suite(name="s", cases=[other, case]).hash
    assert Suite(name="s", cases=[case, other]).hash != Suite(name="s", cases=[case]).hash


def test_our_own_suites_are_right_and_the_embedded_models_is_large_enough() -> None:
    """The embedded model's suite has at least forty questions, and only the tagged ones have a history."""
    assert load(CONTRACT).cases
    cases = load(EMBEDDED).cases
    assert len(cases) >= 40
    kinds = ("capitals", "arithmetic", "languages", "forms", "facts", "safety", "history")
    assert {tag for case in cases for tag in case.tags} == set(kinds)
    assert all(bool(case.history) == ("history" in case.tags) for case in cases)
