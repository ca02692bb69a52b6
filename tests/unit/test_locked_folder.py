"""Folders for the time of some work: never swept while it goes on, always when its process was killed."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

import pytest

from fastserve import locked_folder
from fastserve.locked_folder import LockedFolder, sweep


@pytest.fixture
def swept_first(tmp_path, monkeypatch):
    """Another process looks at each folder before its maker can lock it; it deletes the first one."""
    flock, seen = fcntl.flock, []

    def look_first(descriptor, operation):
        if operation == fcntl.LOCK_EX:
            seen.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            if len(seen) == 1:
                shutil.rmtree(seen[0])
        flock(descriptor, operation)

    monkeypatch.setattr(locked_folder.fcntl, "flock", look_first)
    return seen


def test_a_folder_is_private_and_is_not_swept_until_it_is_removed(tmp_path):
    folder = LockedFolder(tmp_path, "work-")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "file").write_text("mine")
    sweep(tmp_path, "work-")
    assert (folder.path / "file").read_text() == "mine"
    folder.remove()
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_swept_before_it_was_locked_is_made_anew(tmp_path, swept_first):
    folder = LockedFolder(tmp_path, "work-")
    assert len(swept_first) == 2 and str(folder.path) == swept_first[1]
    sweep(tmp_path, "work-")
    assert folder.path.is_dir()


def test_a_maker_waits_for_who_looks_whether_its_folder_is_locked(tmp_path, monkeypatch):
    """A lock that is only tried would not be had, and nobody would know: the next sweep would delete the folder."""
    tried = []
    monkeypatch.setattr(locked_folder.fcntl, "flock", lambda descriptor, operation: tried.append(operation))
    LockedFolder(tmp_path, "work-")
    assert tried == [fcntl.LOCK_EX]


def test_sweeping_spares_what_is_to_be_looked_at_and_other_names(tmp_path):
    for name in ("work-left", "work-precious", "other"):
        (tmp_path / name / "inner").mkdir(parents=True)
    (tmp_path / "work-precious" / "replaced").mkdir()
    (tmp_path / "work-file").write_text("no folder")
    sweep(tmp_path, "work-", sparing="replaced")
    assert {path.name for path in tmp_path.iterdir()} == {"work-precious", "other", "work-file"}


def test_without_its_home_a_folder_cannot_be_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        LockedFolder(tmp_path / "gone", "work-")
