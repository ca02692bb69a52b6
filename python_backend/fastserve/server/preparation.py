"""Gets a model ready in the user's process: exports it into a repository, or loads it for an inference function."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from fastserve.errors import (
    ConfigError,
    FastServeError,
    InvalidRequest,
    ModelNotFound,
    ToolError,
    UnsupportedModel,
    first_line,
    shorten,
)
from fastserve.export.options import ExportOptions
from fastserve.manifest import ModelManifest
from fastserve.server.model_source import Checkpoint, ExportedModel, LiveModel, ModelSource, task_of
from fastserve.server.server_config import ServerConfig
from fastserve.tools import console
from fastserve.tools.demo_model import fingerprint, sound_manifest

_EXPORT_COMMAND = "pip install 'triton-fastserve[export]'"
_MARK_FILE = ".exported-from"
"""Beside an export in the user's repository: a hash of what it was made of."""
_PIPELINES = {"relation-extraction": "text-classification", "reranking": "text-classification"}
"""transformers' names of pipelines, where they are not the task's."""


def load_pipeline(source: Checkpoint, task: str | None) -> Any:
    """``transformers.pipeline`` for a folder or hub id, ready to be called with a list of texts. What transformers has to say
    about the checkpoint (a head it had to make up) goes to the user's log.

    Raises ConfigError, ModelNotFound, UnsupportedModel or, without transformers, ToolError.
    """
    task = task or task_of(source)
    try:
        import transformers

        make: Any = transformers.pipeline
    except ImportError as error:
        raise _not_installed(error) from None
    try:
        return make(_PIPELINES.get(task, task), model=source.location)
    except KeyError as error:
        raise ConfigError(f"task: transformers has no pipeline for {task} ({first_line(error)})") from None
    except OSError as error:
        raise ModelNotFound(f"{source.location}: {first_line(error)}") from error
    except Exception as error:  # every file format has exceptions of its own for a damaged file
        raise UnsupportedModel(f"{source.location}: transformers cannot load it for {task} ({_last_line(error)})") from error


def function_model(source: ModelSource, task: str | None) -> Any:
    """What an inference function gets: the object itself, or the pipeline of a folder or hub id. Raises as
    :func:`load_pipeline`."""
    if isinstance(source, LiveModel):
        return source.model
    assert isinstance(source, Checkpoint)
    return load_pipeline(source, task)


def export(source: Checkpoint | LiveModel, task: str, config: ServerConfig, work: Path) -> ExportedModel:
    """Export for ``task`` into the configured repository, else below ``work``; shows its stages on stderr.

    A folder or file whose export is already in the configured repository is not exported again unless its files have
    changed. Raises what the export raises, and ConfigError.
    """
    options = _options(source, task, config, work)
    assert options.name is not None
    target = options.output / options.name / str(options.version)
    mark = _mark(source, options)
    known = target.parent / _MARK_FILE
    if mark is not None and known.is_file() and known.read_text(encoding="utf-8") == mark:
        manifest = sound_manifest(target)
        if manifest is not None:
            return ExportedModel(target.resolve(), manifest, options.name)
    known.unlink(missing_ok=True)  # nothing says what lies there until this export has ended well
    manifest = _export(source, config, options, work)
    if mark is not None:
        known.write_text(mark, encoding="utf-8")
    return ExportedModel(target.resolve(), manifest, options.name)


def _options(source: Checkpoint | LiveModel, task: str, config: ServerConfig, work: Path) -> ExportOptions:
    try:
        return ExportOptions(
            output=config.model_repository or work / "exports",
            task=task,
            name=config.name or source.name,
            dtype=config.dtype or "fp32",
            force=True,
            **config.export,
        )
    except InvalidRequest as error:
        raise ConfigError(str(error)) from None


def _mark(source: Checkpoint | LiveModel, options: ExportOptions) -> str | None:
    """None for what may have changed without a trace: objects, and models of the hub."""
    if isinstance(source, LiveModel) or not Path(source.location).exists():
        return None
    made_of = f"{fingerprint(source.location)} {dataclasses.replace(options, output=Path())}"
    return hashlib.sha256(made_of.encode()).hexdigest()


def _export(source: Checkpoint | LiveModel, config: ServerConfig, options: ExportOptions, work: Path) -> ModelManifest:
    try:
        from fastserve.export.command import StageDisplay

        with StageDisplay(console.stderr()) as display:
            from fastserve.export.exporters import export_any  # imports torch: seconds

            location = source.location if isinstance(source, Checkpoint) else _save(source, config.tokenizer, work / "source")
            return export_any(location, options, display.show).manifest
    except ImportError as error:
        raise _not_installed(error) from None


def _save(source: LiveModel, tokenizer: Any, folder: Path) -> str:
    """Model and tokenizer as a Hugging Face folder. Raises ConfigError."""
    import transformers

    from fastserve.export.quiet import quiet_libraries

    model = source.model
    found = tokenizer if tokenizer is not None else getattr(model, "name_or_path", "")
    if isinstance(found, (str, Path)):
        if not str(found):
            raise ConfigError("tokenizer: missing, allowed: the model's tokenizer or its path, because the model names none")
        load: Any = transformers.AutoTokenizer.from_pretrained
        try:
            found = load(str(found))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ConfigError(
                f"tokenizer: got {shorten(str(found))}, which cannot be loaded ({first_line(error)}), "
                "allowed: the model's tokenizer or its path"
            ) from None
    if not hasattr(found, "save_pretrained"):
        raise ConfigError(f"tokenizer: got {shorten(repr(found))}, allowed: a tokenizer of transformers or its path")
    with quiet_libraries():
        model.save_pretrained(folder)
        found.save_pretrained(folder)
    return str(folder)


def _not_installed(error: ImportError) -> FastServeError:
    return ToolError(f"{error.name or error} is not installed: {_EXPORT_COMMAND}")


def _last_line(error: BaseException) -> str:
    """Of a message that ends with another error's traceback: what that error says."""
    return shorten((str(error).strip().splitlines() or [type(error).__name__])[-1], 300)
