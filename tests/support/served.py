"""Owns the contract as the app serves it: prints the OpenAPI document as YAML, in its order, for `just contract`."""

import sys

from parley.app import create_app
from parley.settings import Settings
from parley.web.docs import as_yaml


def contract() -> str:
    """Return the document."""
    return f"# Written by `just contract`.\n{as_yaml(create_app(Settings()).openapi_schema.to_schema())}"


if __name__ == "__main__":
    sys.stdout.write(contract())
