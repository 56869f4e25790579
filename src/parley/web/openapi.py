"""Owns the contract's head: what the OpenAPI document says of itself, and where it is served."""

from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from litestar import Response, Router
from litestar.exceptions import NotFoundException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, YamlRenderPlugin


def _refuse_unknown(response: Response[Any]) -> Response[Any]:
    # Litestar has a web page of its own for unknown paths below /schema.
    if response.status_code == HTTPStatus.NOT_FOUND:
        raise NotFoundException
    return response


def openapi_config() -> OpenAPIConfig:
    """Return the configuration; the document is served at /schema/openapi.json and /schema/openapi.yaml."""
    return OpenAPIConfig(
        title="Parley",
        version=version("parley"),
        description="A streaming chat API. POST a message, read the model's answer as typed server-sent events.",
        openapi_router=Router(
            path="/schema", route_handlers=[], after_request=_refuse_unknown, include_in_schema=False
        ),
        render_plugins=[JsonRenderPlugin(path="/openapi.json"), YamlRenderPlugin(path="/openapi.yaml")],
    )
