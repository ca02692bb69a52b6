"""Puts a finished version folder into the model repository in one rename; a failed export leaves nothing behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from fastserve.errors import ConfigError, ToolError
from fastserve.export.config_pbtxt import is_as_rendered, is_ours, kv_cache_dtype_in, kv_cache_dtype_of, render_config_pbtxt
from fastserve.export.options import CONFIG_FILE, ExportOptions
from fastserve.export.text_format import Message, parse_text_format
from fastserve.locked_folder import LockedFolder, sweep

_STAGING_PREFIX = ".fastserve-export-"
_REPLACED = "replaced"
"""In the staging folder: the version that is being replaced, until the new one is in its place."""


def check_target(options: ExportOptions, name: str) -> Path:
    """The version folder to be made. Raises ToolError if it exists without ``force``, is another backend's model, or
    cannot be written."""
    model_directory = options.output / name
    target = model_directory / str(options.version)
    config = model_directory / CONFIG_FILE
    for folder in (options.output, model_directory):
        if folder.exists() and not folder.is_dir():
            raise ToolError(f"{folder} is a file; choose another --output or --name")
    if config.exists() and not is_ours(_parse_config(config, _read_config(config))):
        raise ToolError(f"{config} belongs to another backend; choose another --name")
    if target.exists() and not options.force:
        raise ToolError(f"{target} exists; replace it with --force, or choose another --version or --name")
    _check_writable(model_directory)
    _check_writable(_staging_home(options.output))
    return target


def has_config(target: Path) -> bool:
    """Whether a config.pbtxt lies beside the version folder ``target``. An encoder's is the user's, and stays."""
    return (target.parent / CONFIG_FILE).exists()


@dataclasses.dataclass(frozen=True, slots=True)
class ServedCache:
    """The KV cache that a language model will be served with: its element type, and what there is to say of the config.pbtxt that
    asks for it."""

    dtype: str
    notes: tuple[str, ...] = ()


def served_cache(target: Path, options: ExportOptions) -> ServedCache:
    """By the config.pbtxt that will lie beside ``target``. The user's own stays; one that an export wrote, and nobody touched,
    becomes this export's. Raises ToolError for one that is none."""
    usual = kv_cache_dtype_of(options.device, options.dtype)
    if not has_config(target):
        return ServedCache(usual)
    config = target.parent / CONFIG_FILE
    text = _read_config(config)
    try:
        asked = kv_cache_dtype_in(_parse_config(config, text))
    except ConfigError as error:
        raise ToolError(f"{config}: {error}; mend it, or choose another --name") from None
    if asked == usual:
        return ServedCache(usual)
    if is_as_rendered(text):
        note = f"{config}, which an export wrote, asked for kv_cache_dtype {asked}; it now asks for {usual}"
        return ServedCache(usual, (note,))
    note = f"{config} is your own and stays: it asks for kv_cache_dtype {asked}, an export in {options.dtype} for {usual}"
    return ServedCache(asked, (note,))


def _read_config(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ToolError(f"{path} cannot be read ({error}); mend it, or choose another --name") from None


def _parse_config(path: Path, text: str) -> Message:
    """``text``: what is in the file."""
    try:
        return parse_text_format(text)
    except ValueError as error:
        raise ToolError(f"{path} is no configuration ({error}); mend it, or choose another --name") from None


def _check_writable(folder: Path) -> None:
    """``folder``, or where it would be made, must be a folder in which files can be made."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise ToolError(f"{folder} is a file; choose another --output")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ToolError(f"{folder} is not writable; choose another --output, or run as its owner")


@contextlib.contextmanager
def staged_version(options: ExportOptions, name: str) -> Iterator[Path]:
    """A folder to fill. It becomes the target of :func:`check_target` when the block ends well, else it is deleted.

    Staging lies beside the repository, not in it, so that a polling Triton does not see half a model. It is locked: what
    lies there unlocked was left by an export that was killed, and is swept away. Raises ToolError.
    """
    home = _staging_home(options.output)
    sweep(home, _STAGING_PREFIX, sparing=_REPLACED)
    target = options.output / name / str(options.version)
    folder = LockedFolder(home, _STAGING_PREFIX)
    staging = folder.path
    try:
        version = staging / name / str(options.version)
        version.mkdir(parents=True)
        (staging / name / CONFIG_FILE).write_text(render_config_pbtxt(options.device, options.dtype), encoding="utf-8")
        yield version
        _publish(staging, check_target(options, name))
    finally:
        _put_back(staging / _REPLACED, target)
        folder.remove()


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
    config = model_directory / CONFIG_FILE
    if not config.exists():
        (staged / CONFIG_FILE).rename(config)
    if target.exists():
        target.rename(staging / _REPLACED)
    (staged / target.name).rename(target)
    if (staged / CONFIG_FILE).exists() and is_as_rendered(_read_config(config)):
        (staged / CONFIG_FILE).replace(config)


def _put_back(replaced: Path, target: Path) -> None:
    """Whenever the export ended between the two renames of :func:`_publish`, the old version is the version again."""
    if replaced.exists() and not target.exists():
        replaced.rename(target)
