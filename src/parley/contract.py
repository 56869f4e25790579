"""Owns the contract file: prints the OpenAPI document that the app serves, as YAML in a stable order."""

import msgspec
import yaml

from parley.app import create_app
from parley.settings import Settings


def contract() -> str:
    """Return the document."""
    document = msgspec.to_builtins(create_app(Settings()).openapi_schema.to_schema())
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    return f"# Written by `just contract`.\n{text}"


if __name__ == "__main__":
    print(contract(), end="")  # noqa: T201  # the program's output
