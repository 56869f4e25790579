"""Owns the contract file: prints the OpenAPI document that the app serves, as YAML in a stable order."""

from parley.app import create_app
from parley.settings import Settings
from parley.web.docs import as_yaml


def contract() -> str:
    """Return the document."""
    return f"# Written by `just contract`.\n{as_yaml(create_app(Settings()).openapi_schema.to_schema())}"


if __name__ == "__main__":
    print(contract(), end="")  # noqa: T201  # the program's output
