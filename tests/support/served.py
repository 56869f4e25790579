"""Prints the OpenAPI document that the app serves as YAML, in the document's own order, for `just contract`."""

import sys

from parley.app import create_app
from parley.settings import Settings
from parley.web.docs import as_yaml


def contract() -> str:
    """Return the document as YAML."""
    return f"# Written by `just contract`.\n{as_yaml(create_app(Settings()).openapi_schema.to_schema())}"


if __name__ == "__main__":
    sys.stdout.write(contract())
