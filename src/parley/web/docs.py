"""Serve the contract as JSON, as YAML, and as a page, whose files are installed and do not come from a CDN."""

from __future__ import annotations

import mimetypes
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import yaml
from litestar import Response, Router, get
from litestar.exceptions import NotFoundException
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin, YamlRenderPlugin
from litestar.params import FromPath  # noqa: TC002  # Litestar resolves it when it runs

if TYPE_CHECKING:
    from litestar import Request
    from litestar.openapi.plugins import OpenAPIRenderPlugin

_PATH: Final = "/schema"
_FILES: Final = "/swagger-ui"


def router() -> Router:
    """Return the router for the paths below /schema."""
    # Read the files into memory once: reading one for each client would cost a descriptor and a thread each time.
    files = {path.name: path.read_bytes() for folder in _folders() for path in folder.glob("*/*") if path.is_file()}

    @get(f"{_FILES}/{{folder:str}}/{{name:str}}", sync_to_thread=False)
    def file(name: FromPath[str]) -> Response[bytes]:
        """Return one of the page's files."""
        if name not in files:
            raise NotFoundException
        return Response(files[name], media_type=mimetypes.guess_type(name)[0] or "application/octet-stream")

    handlers = [file] if files else []
    return Router(_PATH, route_handlers=handlers, after_request=_refuse_unknown, include_in_schema=False)


def plugins() -> list[OpenAPIRenderPlugin]:
    """Return the plugins that render the document; the first one serves /schema itself."""
    files = _PATH + _FILES
    page = SwaggerRenderPlugin(
        path="/",
        js_url=f"{files}/js/swagger-ui-bundle.js",
        standalone_preset_js_url=f"{files}/js/swagger-ui-standalone-preset.js",
        css_url=f"{files}/css/swagger-ui.css",
        favicon=f'<link rel="icon" href="{files}/images/swagger.svg">',
    )
    document: list[OpenAPIRenderPlugin] = [JsonRenderPlugin(path="/openapi.json"), _Yaml(path="/openapi.yaml")]
    return [_once(plugin) for plugin in ([page] if _folders() else []) + document]


def _once(plugin: OpenAPIRenderPlugin) -> OpenAPIRenderPlugin:
    """Make a plugin render only once: the document does not change, and rendering it as YAML takes 60 ms."""
    render = plugin.render
    rendered: list[bytes] = []

    def render_once(request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        if not rendered:
            rendered.append(render(request, openapi_schema))
        return rendered[0]

    plugin.render = render_once  # type: ignore[method-assign]  # the plugins are of three classes
    return plugin


def as_yaml(document: dict[str, Any]) -> str:
    """Return the document as YAML in its own order; Litestar would sort it."""
    builtins = msgspec.to_builtins(document)
    return yaml.dump(builtins, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block, instead of with a blank line for each line break."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Choose the style of a string."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(str, _Dumper.represent_str)


class _Yaml(YamlRenderPlugin):
    """Renders the document as YAML, exactly as in the contract's file."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:  # noqa: ARG002  # Litestar passes it
        return as_yaml(openapi_schema).encode()


def _folders() -> list[Path]:
    """Return the folders of the page's files; the list is empty if the dependency group `docs` is not installed."""
    package = find_spec("flask_openapi3_swagger")  # not imported, as its Python part requires Flask
    return [Path(folder, "templates", "swagger") for folder in (package and package.submodule_search_locations) or []]


def _refuse_unknown(response: Response[Any]) -> Response[Any]:
    # Litestar has a web page of its own for unknown paths below /schema.
    if response.status_code == HTTPStatus.NOT_FOUND:
        raise NotFoundException
    return response
