"""The server: errors that stop its start."""

from __future__ import annotations

from contextlib import redirect_stdout

import pytest

from parley.server import serve
from parley.settings import Settings
from tests.support.logs import Logs


def test_a_name_without_an_address_stops_the_start() -> None:
    """The process exits with code 3."""
    logs = Logs()
    with redirect_stdout(logs), pytest.raises(SystemExit) as ended:
        serve(Settings(host="no.such.example."), [])
    assert ended.value.code == 3
    assert "start_failed" in logs.getvalue().splitlines()[-1]
