"""Owns where several worker processes count together: a folder of files, which any of them can add up."""

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
# Times to make the folder again, if another Parley that cleans up has just taken it for a dead one's.
_ATTEMPTS: Final = 10


def choose_folder(workers: int) -> None:
    """Choose where several workers count; prometheus_client must not have been imported yet.

    It looks at the variable when it is imported, and for the folder when it counts: there is nothing to clean up before
    `counting`.
    """
    for name in (_FOLDER, _FOLDER.lower()):  # it may be another program's
        os.environ.pop(name, None)
    if workers > 1:
        os.environ[_FOLDER] = str(Path(tempfile.gettempdir(), _PREFIX + secrets.token_hex(8)))


@contextmanager
def counting() -> Iterator[None]:
    """Have the folder, if one was chosen, for as long as the block runs; remove those that killed Parleys have left.

    All who count in a folder hold a shared lock on it, which the kernel releases when they die.
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
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415  # see above

    folder = Path(os.environ[_FOLDER])
    _lock(folder)  # it may outlive its parent, while its last streams end
    for path in folder.glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not _is_alive(pid):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]  # it has no types


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if _lock(folder, alone=True):
            shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path, *, alone: bool = False) -> bool:
    """Lock a folder of ours until this process ends, if nobody else's lock is in the way; tell whether it is locked.

    Whoever else may write to the temporary directory can put a link there, or a folder of their own.
    """
    import fcntl  # noqa: PLC0415  # Windows has none, and no workers

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
        if found.st_uid == os.geteuid() and not found.st_mode & 0o077 and os.path.samestat(found, folder.lstat()):
            return True
    except OSError:  # somebody has it, or has removed it meanwhile
        pass
    os.close(descriptor)
    return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # gone, or by now somebody else
        return False
    return True
