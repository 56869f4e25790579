"""The directory in which workers share their metrics, and the removal of directories that dead Parleys left."""

from __future__ import annotations

import fcntl
import os
import tempfile
from typing import TYPE_CHECKING

import pytest

from parley.telemetry.worker_metrics import choose_folder, counting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Provide an empty temporary directory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    choose_folder(1)


def left(temporary: Path, name: str, mode: int = 0o700) -> Path:
    """Create a leftover directory with a file in it."""
    folder = temporary / name
    folder.mkdir()
    folder.chmod(mode)
    (folder / "counter_1.db").touch()
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_folders_that_dead_parleys_have_left_are_removed(temporary: Path, workers: int) -> None:
    """Nothing else is removed; Parley's own directory goes at the end."""
    kept = {left(temporary, "parley-metrics-others", 0o755), left(temporary, "parley"), left(temporary, "elsewhere")}
    (temporary / "parley-metrics-link").symlink_to(temporary / "elsewhere")
    (temporary / "parley-metrics-file").touch()
    kept |= {temporary / "parley-metrics-link", temporary / "parley-metrics-file"}
    left(temporary, "parley-metrics-1")
    left(temporary, "parley-metrics-2")
    choose_folder(workers)
    with counting():
        own = set(temporary.iterdir()) - kept
        assert len(own) == workers - 1
        assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in own)
    assert set(temporary.iterdir()) == kept
    assert all((folder / "counter_1.db").exists() for folder in kept if folder.is_dir())


def test_a_folder_that_somebody_counts_in_is_kept(temporary: Path) -> None:
    """The directory is kept until the last process has released its lock."""
    folder = left(temporary, "parley-metrics-1")
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    choose_folder(1)
    with counting():
        assert folder.exists()
    os.close(descriptor)
    with counting():
        assert not folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_kept(temporary: Path) -> None:
    """Root could remove the directory but must not."""
    folder = left(temporary, "parley-metrics-1")
    os.chown(folder, 12345, 12345)
    choose_folder(1)
    with counting():
        assert folder.exists()


def test_a_folder_that_is_removed_before_it_is_locked_is_made_again(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another Parley that starts at this moment may take the directory for a dead one's."""
    flock = fcntl.flock

    def remove_first(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        (folder,) = temporary.iterdir()
        folder.rmdir()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    choose_folder(2)
    with counting():
        (folder,) = temporary.iterdir()
        other = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
