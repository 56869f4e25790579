"""The pytest fixtures, which pytest finds by the package's entry point; each imports what it needs when it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from parley.testing.in_memory import FakeParley
    from parley.testing.server import FakeParleyServer

_FACTORIES: Final = {
    "chat_request_factory": "ChatRequestFactory",
    "chat_response_factory": "ChatResponseFactory",
    "done_chunk_factory": "DoneChunkFactory",
    "error_chunk_factory": "ErrorChunkFactory",
    "error_response_factory": "ErrorResponseFactory",
    "history_turn_factory": "HistoryTurnFactory",
    "reasoning_chunk_factory": "ReasoningChunkFactory",
    "start_chunk_factory": "StartChunkFactory",
    "text_chunk_factory": "TextChunkFactory",
}


@pytest.fixture
def fake_parley() -> FakeParley:
    """Return a fake Parley, for `httpx.Client(transport=fake_parley, base_url="http://parley")`."""
    from parley.testing.in_memory import FakeParley  # noqa: PLC0415  # httpx takes time to import, and may be missing

    return FakeParley()


@pytest.fixture
def fake_parley_server() -> Iterator[FakeParleyServer]:
    """Run a fake Parley at `fake_parley_server.url`, on a real socket."""
    from parley.testing.server import FakeParleyServer  # noqa: PLC0415  # likewise

    with FakeParleyServer() as server:
        yield server


def _fixture(name: str) -> Callable[[], Any]:
    def factory() -> Any:
        from parley.testing import factories  # noqa: PLC0415  # polyfactory, and the faker that it uses, take 0.3 s

        return getattr(factories, _FACTORIES[name])

    factory.__doc__ = f"Return `{_FACTORIES[name]}`, a factory of polyfactory."
    return pytest.fixture(name=name)(factory)


for _name in _FACTORIES:
    globals()[_name] = _fixture(_name)
