"""Puts a finished version folder into the model repository in one rename; a failed export leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fastserve.errors import ToolError
from fastserve.export.config_pbtxt import render_config_pbtxt
from fastserve.export.options import ExportOptions

CONFIG_FILE = "config.pbtxt"


def check_target(options: ExportOptions, name: str) -> Path:
    """The version folder to be made. Raises ToolError if it exists without ``force``, or is another backend's model."""
    model_directory = options.output / name
    target = model_directory / str(options.version)
    config = model_directory / CONFIG_FILE
    if config.is_file() and '"fastserve"' not in config.read_text(encoding="utf-8"):
        raise ToolError(f"{config} belongs to another backend; choose another --name")
    if target.exists() and not options.force:
        raise ToolError(f"{target} exists; replace it with --force, or choose another --version or --name")
    return target


@contextlib.contextmanager
def staged_version(options: ExportOptions, name: str) -> Iterator[Path]:
    """A folder to fill. It becomes the target of :func:`check_target` when the block ends well, else it is deleted.

    Staging lies beside the repository, not in it, so that a polling Triton does not see half a model.
    """
    staging = Path(tempfile.mkdtemp(prefix=".fastserve-export-", dir=_staging_home(options.output)))
    try:
        version = staging / name / str(options.version)
        version.mkdir(parents=True)
        (staging / name / CONFIG_FILE).write_text(render_config_pbtxt(), encoding="utf-8")
        yield version
        _publish(staging, check_target(options, name))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _staging_home(output: Path) -> Path:
    """Where renames into ``output`` stay on one file system: beside it, in it when it is a mount point of its own."""
    output = output.absolute()
    beside = output.parent
    while not beside.exists():
        beside = beside.parent
    if output.exists() and (output.stat().st_dev != beside.stat().st_dev or not os.access(beside, os.W_OK)):
        return output
    return beside


def _publish(staging: Path, target: Path) -> None:
    model_directory = target.parent
    staged = staging / model_directory.name
    model_directory.parent.mkdir(parents=True, exist_ok=True)
    if not model_directory.exists():
        staged.rename(model_directory)
        return
    if not (model_directory / CONFIG_FILE).exists():
        (staged / CONFIG_FILE).rename(model_directory / CONFIG_FILE)
    replaced = staging / "replaced"
    if target.exists():
        target.rename(replaced)
    try:
        (staged / target.name).rename(target)
    except BaseException:
        if replaced.exists():
            replaced.rename(target)
        raise
