"""The folder in which several worker processes count together: any of them can add up its files."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
_PREFIX: Final = "parley-metrics-"
# Attempts to create the folder, as another Parley's cleanup may have just removed it as abandoned.
_ATTEMPTS: Final = 10


def choose_folder(workers: int) -> None:
    """Choose the folder in which several workers count; prometheus_client must not have been imported yet.

    prometheus_client reads the variable when it is imported, but needs the folder only when it counts, so there is
    nothing to clean up before `counting`.
    """
    for name in (_FOLDER, _FOLDER.lower()):  # the variable may be set for another program
        os.environ.pop(name, None)
    if workers > 1:
        os.environ[_FOLDER] = str(Path(tempfile.gettempdir(), _PREFIX + secrets.token_hex(8)))


@contextmanager
def counting() -> Iterator[None]:
    """Create the folder, if one was chosen, for the duration of the block; remove folders that killed Parleys left.

    Each process that counts in a folder holds a shared lock on it, which the kernel releases when the process dies.
    """
    _remove_abandoned()
    folder = Path(os.environ[_FOLDER]) if _FOLDER in os.environ else None
    if folder is None:
        yield
        return
    try:
        for _ in range(_ATTEMPTS):
            folder.mkdir(mode=0o700, exist_ok=True)
            if _lock(folder):
                break
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def count_here() -> None:
    """Count in this worker, too. Drop the live gauges of dead workers; keep their counters."""
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415  # only after `choose_folder`

    folder = Path(os.environ[_FOLDER])
    _lock(folder)  # this worker may outlive its parent, while its last streams end
    for path in folder.glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not _is_alive(pid):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]  # it has no types


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if _lock(folder, alone=True):
            shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path, *, alone: bool = False) -> bool:
    """Lock a folder until this process ends; return `False` if it is not ours, or another process's lock prevents it.

    Other users who may write to the temporary directory can put a link there, or a folder of their own.
    """
    import fcntl  # noqa: PLC0415  # Windows has no fcntl, and no workers

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
        if found.st_uid == os.geteuid() and not found.st_mode & 0o077 and os.path.samestat(found, folder.lstat()):
            return True
    except OSError:  # another process has locked it, or has removed it meanwhile
        pass
    os.close(descriptor)
    return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # the process is gone, or its id belongs to another user's process
        return False
    return True
