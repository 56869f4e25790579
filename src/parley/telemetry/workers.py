"""Owns where several worker processes count together: a folder of files, which any of them can add up."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"


@contextmanager
def counting(workers: int) -> Iterator[None]:
    """Let several workers, which this process starts, count in files; begin before prometheus_client is imported."""
    for name in (_FOLDER, _FOLDER.lower()):  # it may be another program's
        os.environ.pop(name, None)
    if workers == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="parley-metrics-") as folder:
        os.environ[_FOLDER] = folder
        yield


def forget_the_dead() -> None:
    """Leave out what workers were doing who were killed while they did it; what they had done still counts."""
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415  # see above

    for path in Path(os.environ[_FOLDER]).glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not _is_alive(pid):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]  # it has no types


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # gone, or by now somebody else
        return False
    return True
