"""Owns the page that shows the contract: Swagger UI, from files that are installed with Parley and not from a CDN."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from litestar.openapi.plugins import SwaggerRenderPlugin
from litestar.static_files import create_static_files_router

if TYPE_CHECKING:
    from litestar import Router

_FILES: Final = "/swagger-ui"


def page(path: str) -> SwaggerRenderPlugin:
    """Return the page, for this path."""
    files = path + _FILES
    return SwaggerRenderPlugin(
        path="/",
        js_url=f"{files}/js/swagger-ui-bundle.js",
        standalone_preset_js_url=f"{files}/js/swagger-ui-standalone-preset.js",
        css_url=f"{files}/css/swagger-ui.css",
        favicon=f'<link rel="icon" href="{files}/images/swagger.svg">',
    )


def file_routers() -> list[Router]:
    """Return the router of the page's files, if they are there: the dependency group `docs` brings them."""
    package = find_spec("flask_openapi3_swagger")  # found, not imported: its Python part wants Flask
    folders = (package.submodule_search_locations if package else None) or []
    return [create_static_files_router(_FILES, [Path(folder, "templates", "swagger")]) for folder in folders]
