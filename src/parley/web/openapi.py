"""Owns the contract's head: what the OpenAPI document says of itself, and where it is served."""

from importlib.metadata import version

from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, YamlRenderPlugin


def openapi_config() -> OpenAPIConfig:
    """Return the configuration; the document is served at /schema/openapi.json and /schema/openapi.yaml."""
    return OpenAPIConfig(
        title="Parley",
        version=version("parley"),
        description="A streaming chat API. POST a message, read the model's answer as typed server-sent events.",
        render_plugins=[JsonRenderPlugin(path="/openapi.json"), YamlRenderPlugin(path="/openapi.yaml")],
    )
