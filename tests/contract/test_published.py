"""The files that are published beside the code agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from parley.chat.errors import ErrorCode
from parley.environment import variables
from parley.evaluation import baseline, cases
from parley.evaluation.expectations import Expect
from tests.support.contract import read
from tests.support.evals import BASELINE
from tests.support.served import contract
from tests.support.tables import TABLES, as_written, pages, written

ROOT = Path(__file__).parents[2]


def test_the_contract_file_is_what_the_app_serves() -> None:
    """`just contract` writes the file."""
    assert (ROOT / "contracts" / "chat-api.yaml").read_text() == contract()


def test_the_contract_says_that_chat_streams_chunks() -> None:
    """The contract has the media type, the chunks with their tags, and the error body for every status."""
    document = yaml.safe_load(contract())
    responses = document["paths"]["/chat"]["post"]["responses"]
    stream = responses.pop("200")["content"]["text/event-stream"]["schema"]
    assert stream == {"$ref": "#/components/schemas/StreamChunk"}
    chunk = document["components"]["schemas"]["StreamChunk"]
    tags = {kind: f"{kind.title()}Chunk" for kind in ("start", "reasoning", "text", "done", "error")}
    references = {tag: f"#/components/schemas/{name}" for tag, name in tags.items()}
    assert chunk["oneOf"] == [{"$ref": reference} for reference in references.values()]
    assert chunk["discriminator"] == {"propertyName": "type", "mapping": references}
    assert sorted(responses) == ["400", "401", "413", "415", "429", "500", "502", "503", "504"]
    for response in responses.values():
        assert response["content"]["application/json"]["schema"]["$ref"] == "#/components/schemas/ErrorResponse"
        assert "X-Correlation-ID" in response["headers"]


def test_the_contract_lists_the_error_codes_without_closing_the_list() -> None:
    """A client that was generated from an `enum` could not decode a new code."""
    code = read()["components"]["schemas"]["ErrorCode"]
    assert (code["type"], code["x-extensible-enum"]) == ("string", [str(code) for code in ErrorCode])
    assert "enum" not in code
    assert all(f"`{known}`" in code["description"] for known in ErrorCode)


def test_the_contract_names_the_field_that_asks_for_a_kind_of_chunk() -> None:
    """The field is optional."""
    schemas = read()["components"]["schemas"]
    fields = {name: schema["x-requested-by"] for name, schema in schemas.items() if "x-requested-by" in schema}
    assert fields == {"ReasoningChunk": "include_reasoning"}
    assert set(fields.values()) <= schemas["ChatRequest"]["properties"].keys() - schemas["ChatRequest"]["required"]


def test_the_last_release_has_its_section_in_the_changelog() -> None:
    """This keeps released.yaml from being written between releases, which would hide changes since the last one."""
    version = read("released.yaml")["info"]["version"]
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_a_pages_tables_are_what_the_code_says(page: Path) -> None:
    """The tables have the code's words and order: settings, errors, metrics, fields of requests and of log lines."""
    text = page.read_text()
    assert text == written(text), "run `just tables`"


def test_every_table_is_in_a_page() -> None:
    """Each table is in exactly one page; a misspelt marker would leave it out."""
    text = "".join(page.read_text() for page in pages())
    assert sorted(re.findall(r"<!-- ([\w-]+) -->", text)) == sorted(TABLES)


def test_what_the_readme_promises_is_held_by_a_test() -> None:
    """Each row of the table of promises names a test, in a file that it links."""
    readme = (ROOT / "README.md").read_text()
    _, promises, _ = re.split(r"^## ", readme[readme.index("## What it does that") :], maxsplit=2, flags=re.MULTILINE)
    rows = re.findall(r"^\| .+\|$", promises, re.MULTILINE)[2:]
    assert len(rows) > 8
    for promise in rows:
        ((path, name),) = re.findall(r'\[test\]\((tests/\S+\.py) "(test_\w+)"\)', promise)
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), promise


def test_the_readme_is_short() -> None:
    """Longer text belongs in a page of docs/."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_page_on_logs_explains_every_event_and_no_other() -> None:
    """Each event has a row."""
    pattern = re.compile(r"_log\.(?:info|warning|error|critical|exception)[(,]\s*\"(\w+)\"")
    logged = {name for path in (ROOT / "src").rglob("*.py") for name in pattern.findall(path.read_text())}
    _, _, events = (ROOT / "docs" / "logs.md").read_text().partition("## Other events")
    explained = set(re.findall(r"^\| `(\w+)` \| \w+", events, re.MULTILINE))
    assert "serving" in logged
    assert logged | {"library_message", "unloggable"} == explained  # Parley makes these from other libraries' logs


def test_the_pages_and_the_proxies_files_name_settings_that_exist() -> None:
    """The settings have exactly these names."""
    pages = [*ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.*")]
    named = {name for page in pages for name in re.findall(r"\bPARLEY_\w+", page.read_text())}
    assert {"PARLEY_HEARTBEAT_S", "PARLEY_KEEP_ALIVE_S"} <= named
    assert named <= {variable.name for variable in variables()}


def test_the_example_environment_names_every_setting() -> None:
    """Each one is commented out, with its default if it has one."""
    lines = re.findall(r"^# ?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert [name for name, _ in lines] == [variable.name for variable in variables()]
    defaults = {variable.name: as_written(variable.default) for variable in variables() if variable.default is not None}
    assert {name: value for name, value in lines if name in defaults} == defaults


EVALUATION = (ROOT / "docs" / "evaluation.md").read_text()


def test_the_page_of_the_evaluation_explains_each_expectation() -> None:
    """The page explains no other expectation."""
    explained = re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \| .*\|$", EVALUATION.partition("### Expectations")[2], re.MULTILINE
    )
    names = [name for row in explained for name in re.findall(r"\w+", row)]
    assert sorted(names) == sorted(Expect.__struct_fields__)


def test_the_suites_on_the_page_of_the_evaluation_can_be_used(tmp_path: Path) -> None:
    """The suites are valid exactly as they are printed."""
    suites = [text for text in re.findall(r"```yaml\n(.*?)```", EVALUATION, re.DOTALL) if "cases:" in text]
    assert len(suites) == 2
    for text in suites:
        path = tmp_path / "suite.yaml"
        path.write_text(text)
        assert cases.load(str(path)).cases


def test_the_readme_promises_of_the_embedded_model_what_the_suite_shows() -> None:
    """The README promises no more and no less. Another test asks the model whether any answer loops."""
    kept = baseline.read(BASELINE)
    right = sum(case.right for case in kept.cases.values())
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"It answers {right} of the {len(kept.cases)} questions in [Parley's suite]" in readme
    assert "and no answer repeats endlessly" in readme
