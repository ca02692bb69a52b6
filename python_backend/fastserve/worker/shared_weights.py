"""One copy of the weights for all processes of a machine.

ONNX Runtime rearranges ("prepacks") the weights of matrix products when it loads a graph, into memory of its own: every
instance of a model would hold the weights twice, once mapped and once rearranged. It can also save the optimised graph with
the rearranged weights; a process that loads that file maps them, and the kernel keeps one copy for all. The file fits only the
processor and the ONNX Runtime that made it, so it is made where the model is served, by whichever instance comes first, in a
cache folder; the exported model is never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import onnxruntime as ort

from fastserve.locked_folder import LockedFolder, sweep
from fastserve.manifest import FileEntry

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "FASTSERVE_CACHE"
"""Environment variable that names the cache folder."""
OPTIMIZED_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"

_UNUSED_S = 14 * 24 * 3600.0
"""Entries that nobody loaded for this long are deleted when a new one is made."""
_STAGING_PREFIX = ".making-"
_ROOM = 2.2
"""Free space a new entry needs, in sizes of the model's files: the weights as they are, and rearranged."""


def cache_directory() -> Path:
    """Where shared weights are kept: ``$FASTSERVE_CACHE``, else the user's cache folder, else a temporary one."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME") or (Path(os.environ["HOME"]) / ".cache" if os.environ.get("HOME") else None)
    if home is not None and _can_write(Path(home)):
        return Path(home) / "fastserve"
    return Path(tempfile.gettempdir()) / f"fastserve-{os.getuid()}"


def shared_model(
    name: str, files: dict[str, FileEntry], cache: Path, make: Callable[[Path], None], *, clock: Callable[[], float] = time.time
) -> Path | None:
    """The optimised graph of the model with these ``files`` (a manifest's), made now if nobody has made it here before.

    ``name``: the graph's file. ``make(path)``: writes the optimised graph to ``path`` and its weights to
    :data:`WEIGHTS_FILE` beside it. ``clock``: seconds since the epoch. Processes wait for each other. None, with a warning in
    the log, when the cache cannot be used: then every process has weights of its own, and nothing else changes.
    """
    entry = cache / _key(name, files)
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        if cache.stat().st_uid != os.getuid():  # whoever owns the folder could put weights of their own into it
            raise OSError(f"{cache} belongs to another user")
        with _locked(cache / f"{entry.name}.lock"):
            if not (entry / OPTIMIZED_FILE).exists():
                _prune(cache, clock() - _UNUSED_S)
                _make_entry(entry, sum(file.bytes for file in files.values()), make)
            os.utime(entry, (clock(), clock()))
    except OSError as error:
        logger.warning("weights are not shared with other instances: %s; name another folder in $%s", error, CACHE_VARIABLE)
        return None
    return entry / OPTIMIZED_FILE


def _make_entry(entry: Path, size: int, make: Callable[[Path], None]) -> None:
    """Fill a folder beside ``entry`` and rename it, so that an entry is always whole."""
    free = shutil.disk_usage(entry.parent).free
    if free < _ROOM * size:
        raise OSError(f"{entry.parent} has {free / 1e6:.0f} MB free, {_ROOM * size / 1e6:.0f} MB are needed")
    staging = LockedFolder(entry.parent, _STAGING_PREFIX)
    try:
        make(staging.path / OPTIMIZED_FILE)
        shutil.rmtree(entry, ignore_errors=True)
        staging.path.rename(entry)
    finally:
        staging.remove()


def _prune(cache: Path, before: float) -> None:
    """Delete entries not loaded since ``before``, but those that somebody is about to load, and what killed processes left
    unfinished. A process that still maps an entry keeps its pages until it ends."""
    sweep(cache, _STAGING_PREFIX)
    for lock in cache.glob("*.lock"):
        entry = lock.with_suffix("")
        with contextlib.suppress(OSError):
            if entry.stat().st_mtime < before:
                with _locked(lock, wait=False):
                    if entry.stat().st_mtime < before:
                        shutil.rmtree(entry)
                        lock.unlink()


@contextlib.contextmanager
def _locked(file: Path, *, wait: bool = True) -> Iterator[None]:
    """Raises OSError; without ``wait`` also when somebody else has the lock."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:  # else it was deleted while we waited: others lock another file
                yield
                return
        finally:
            os.close(descriptor)


def _key(name: str, files: dict[str, FileEntry]) -> str:
    """Changes with the model, the ONNX Runtime, and the processor."""
    parts = [ort.__version__, _processor(), name, *(f"{file}={entry.sha256}" for file, entry in sorted(files.items()))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    """What the layout of rearranged weights depends on: the instruction sets."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def _can_write(folder: Path) -> bool:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)
