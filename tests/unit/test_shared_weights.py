"""Shared weights: made once, whole or not at all, found again, and never a reason not to serve."""

from __future__ import annotations

import concurrent.futures
import fcntl
import os
import threading

import pytest

from fastserve.manifest import FileEntry
from fastserve.worker import shared_weights
from fastserve.worker.shared_weights import OPTIMIZED_FILE, WEIGHTS_FILE, cache_directory, shared_model

FILES = {"model.onnx": FileEntry("aa", 10), "model.onnx.data": FileEntry("bb", 20)}
DAY = 24 * 3600.0


class Maker:
    """Writes what a session would, and counts."""

    def __init__(self, content=b"optimised"):
        self.calls = 0
        self.content = content

    def __call__(self, path):
        self.calls += 1
        (path.parent / WEIGHTS_FILE).write_bytes(b"weights")
        path.write_bytes(self.content)


def test_the_first_makes_it_and_the_others_find_it(tmp_path):
    make = Maker()
    first = shared_model("model.onnx", FILES, tmp_path / "cache", make)
    assert first is not None and first.name == OPTIMIZED_FILE and first.read_bytes() == b"optimised"
    assert (first.parent / WEIGHTS_FILE).read_bytes() == b"weights"
    assert shared_model("model.onnx", FILES, tmp_path / "cache", make) == first
    assert make.calls == 1


def test_processes_that_come_at_once_make_one(tmp_path):
    gate = threading.Barrier(4)
    make = Maker()

    def load(_):
        gate.wait()
        return shared_model("model.onnx", FILES, tmp_path, make)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(load, range(4)))) == 1
    assert make.calls == 1


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("model.kv_fp16.onnx", FILES),
        ("model.onnx", FILES | {"model.onnx.data": FileEntry("cc", 20)}),
    ],
    ids=["another graph", "other weights"],
)
def test_another_model_has_another_entry(tmp_path, name, files):
    assert shared_model("model.onnx", FILES, tmp_path, Maker()) != shared_model(name, files, tmp_path, Maker())


def test_another_processor_or_onnxruntime_has_another_entry(tmp_path, monkeypatch):
    own = shared_model("model.onnx", FILES, tmp_path, Maker())
    monkeypatch.setattr(shared_weights, "_processor", lambda: "flags: avx99")
    other = shared_model("model.onnx", FILES, tmp_path, Maker())
    monkeypatch.setattr(shared_weights.ort, "__version__", "9.9")
    third = shared_model("model.onnx", FILES, tmp_path, Maker())
    assert len({own, other, third}) == 3


def test_an_entry_that_could_not_be_finished_is_not_there(tmp_path):
    def break_off(path):
        path.write_bytes(b"half")
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        shared_model("model.onnx", FILES, tmp_path, break_off)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    make = Maker()
    assert shared_model("model.onnx", FILES, tmp_path, make) is not None and make.calls == 1


def test_without_room_every_process_keeps_its_own(tmp_path, caplog):
    huge = {"model.onnx.data": FileEntry("aa", 1 << 60)}
    make = Maker()
    assert shared_model("model.onnx", huge, tmp_path, make) is None
    assert make.calls == 0 and "MB are needed" in caplog.text and "FASTSERVE_CACHE" in caplog.text


def test_a_folder_that_is_none_is_no_reason_not_to_serve(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    assert shared_model("model.onnx", FILES, tmp_path / "cache", Maker()) is None
    assert "not shared" in caplog.text


def test_a_folder_of_another_user_is_not_trusted(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(shared_weights.os, "getuid", lambda: os.geteuid() + 1)
    assert shared_model("model.onnx", FILES, tmp_path, Maker()) is None
    assert "belongs to another user" in caplog.text


def test_what_nobody_used_for_two_weeks_goes_when_something_new_is_made(tmp_path):
    now = [1e9]
    old = shared_model("old.onnx", FILES, tmp_path, Maker(), clock=lambda: now[0])
    kept = shared_model("kept.onnx", FILES, tmp_path, Maker(), clock=lambda: now[0])
    now[0] += 13 * DAY
    shared_model("kept.onnx", FILES, tmp_path, Maker(), clock=lambda: now[0])  # used again
    now[0] += 2 * DAY
    new = shared_model("new.onnx", FILES, tmp_path, Maker(), clock=lambda: now[0])
    assert (old.exists(), kept.exists(), new.exists()) == (False, True, True)


def test_an_entry_that_somebody_is_about_to_load_is_not_deleted(tmp_path):
    now = [1e9]
    old = shared_model("old.onnx", FILES, tmp_path, Maker(), clock=lambda: now[0])
    now[0] += 15 * DAY
    with (tmp_path / f"{old.parent.name}.lock").open() as loading:
        fcntl.flock(loading, fcntl.LOCK_EX)
        shared_model("new.onnx", FILES, tmp_path, Maker(), clock=lambda: now[0])
        assert old.exists()
    shared_model("newer.onnx", FILES, tmp_path, Maker(), clock=lambda: now[0])
    assert not old.exists()


def test_a_lock_that_was_deleted_while_it_was_waited_for_is_taken_anew(tmp_path, monkeypatch):
    flock, locked = fcntl.flock, []

    def deleted_meanwhile(descriptor, operation):
        if not locked:
            next(tmp_path.glob("*.lock")).unlink()
        locked.append(os.fstat(descriptor).st_ino)
        flock(descriptor, operation)

    monkeypatch.setattr(shared_weights.fcntl, "flock", deleted_meanwhile)
    made = shared_model("model.onnx", FILES, tmp_path, Maker())
    assert made.exists()
    assert (tmp_path / f"{made.parent.name}.lock").stat().st_ino in locked[1:]


def test_what_a_killed_process_left_half_made_goes(tmp_path):
    (tmp_path / ".making-half").mkdir()
    (tmp_path / ".making-half" / WEIGHTS_FILE).write_bytes(b"gigabytes")
    shared_model("model.onnx", FILES, tmp_path, Maker())
    assert not (tmp_path / ".making-half").exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FASTSERVE_CACHE": "{tmp}/mine", "HOME": "{tmp}"}, "{tmp}/mine"),
        ({"XDG_CACHE_HOME": "{tmp}/xdg", "HOME": "{tmp}"}, "{tmp}/xdg/fastserve"),
        ({"HOME": "{tmp}"}, "{tmp}/.cache/fastserve"),
        ({}, "{temp}/fastserve-{uid}"),
    ],
)
def test_where_the_cache_is(tmp_path, monkeypatch, environment, expected):
    for name in ("FASTSERVE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    monkeypatch.setattr(shared_weights.tempfile, "gettempdir", lambda: "/var/tmp")
    assert str(cache_directory()) == expected.format(tmp=tmp_path, temp="/var/tmp", uid=os.getuid())
