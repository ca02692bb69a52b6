"""What a user may mean by "the model": a path, a hub id, an export, or an object, and the task it is for."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from fastserve.config import ENCODER_TASKS, GENERATION_TASK
from fastserve.errors import ConfigError, ModelNotFound, shorten
from fastserve.export.options import HUB_ID, model_name_from
from fastserve.manifest import MANIFEST_FILE, ModelManifest

_TASK_SUFFIXES = {
    "ForTokenClassification": "token-classification",
    "ForSequenceClassification": "text-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": GENERATION_TASK,
    "LMHeadModel": GENERATION_TASK,
    "Model": "feature-extraction",
}
"""Endings of transformers' class names; the first that fits counts."""


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """Something to load or export. ``location``: a Hugging Face folder, a .gguf file, or a hub id."""

    location: str
    name: str

    @property
    def is_gguf(self) -> bool:
        return self.location.endswith(".gguf")


@dataclasses.dataclass(frozen=True, slots=True)
class ExportedModel:
    """A version folder that ``fastserve export`` wrote."""

    directory: Path
    manifest: ModelManifest
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class LiveModel:
    """An object in the user's process."""

    model: Any
    name: str


ModelSource = Checkpoint | ExportedModel | LiveModel


def find_source(model: Any) -> ModelSource:
    """What ``model`` is. Raises ModelNotFound or ManifestError; touches no network and imports no torch."""
    if not isinstance(model, (str, os.PathLike)):
        known_as = str(getattr(model, "name_or_path", "") or type(model).__name__)
        return LiveModel(model, model_name_from(known_as.rstrip("/")))
    path = Path(model).expanduser()
    if path.is_dir():
        if (version := _exported_version(path)) is not None:
            entry = version.parent.name if version.name.isdecimal() else version.name
            return ExportedModel(version, ModelManifest.load(version), model_name_from(entry))
        return Checkpoint(str(path), model_name_from(path.resolve().name))
    if path.is_file():
        return Checkpoint(str(path), model_name_from(path.stem))
    if path.suffix == ".gguf" or not HUB_ID.fullmatch(str(model)):
        raise ModelNotFound(f"{model}: no such file or folder, and no hub id")
    return Checkpoint(str(model), model_name_from(str(model)))


def task_of(source: Checkpoint | LiveModel) -> str:
    """The task a model was trained for, by its architecture.

    Raises :class:`ConfigError` when that does not say, ModelNotFound for a hub id that cannot be read.
    """
    if isinstance(source, LiveModel):
        architecture = type(source.model).__name__
    elif source.is_gguf or any(Path(source.location).glob("*.gguf")):
        return GENERATION_TASK
    elif Path(source.location).is_file():
        architecture = ""  # an ONNX graph, which says nothing of the kind
    else:
        architecture = _architecture(source.location)
    for suffix, task in _TASK_SUFFIXES.items():
        if architecture.endswith(suffix):
            return task
    known = ", ".join((GENERATION_TASK, *ENCODER_TASKS))
    raise ConfigError(f"task: cannot be told from the model ({architecture or 'it names no architecture'}), allowed: {known}")


def _architecture(location: str) -> str:
    config = Path(location) / "config.json"
    if not Path(location).is_dir():
        from fastserve.export.source import load_config, resolve

        names = load_config(resolve(location)).architectures
    else:
        try:
            names = json.loads(config.read_text(encoding="utf-8")).get("architectures")
        except OSError as error:
            raise ModelNotFound(f"{config}: cannot be read ({error.strerror}); is this a Hugging Face folder?") from None
        except (ValueError, AttributeError) as error:
            raise ModelNotFound(f"{config}: is no JSON object ({shorten(str(error))})") from None
    return str(names[0]) if names else ""


def _exported_version(path: Path) -> Path | None:
    """``path`` if it is a version folder, its newest version if it is a model's entry in a repository, else None."""
    if (path / MANIFEST_FILE).is_file():
        return path.resolve()
    versions = [folder for folder in path.iterdir() if folder.name.isdecimal() and (folder / MANIFEST_FILE).is_file()]
    return max(versions, key=lambda folder: int(folder.name)).resolve() if versions else None
