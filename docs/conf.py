"""Configuration of the documentation site: its sources are Markdown files as GitHub shows them, at the same paths."""

from importlib import metadata
from pathlib import Path
from typing import Any

project = "Parley"
release = metadata.version("parley")
extensions = ["myst_parser", "sphinxcontrib.mermaid"]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "contracts/README.md",
    "deploy/*.md",
    "docs/*.md",
    "examples/README.md",
    "examples/*/README.md",
]
exclude_patterns = [".venv", "dist", "tests"]

myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"Parley {release}"
html_extra_path = ["redirect"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False


def setup(app: Any) -> None:
    """Add the navigation to the first page; in its file, GitHub would show it as code."""

    def add_navigation(_: Any, page: str, source: list[str]) -> None:
        if page == root_doc:
            source[0] += "\n" + Path(__file__).with_name("navigation.txt").read_text()

    app.connect("source-read", add_navigation)
