"""Lays out the directory ``tritonserver --backend-directory`` reads: the python backend and ours, ``fastserve``."""

from __future__ import annotations

import shutil
from pathlib import Path

import fastserve
from fastserve.errors import ToolError
from fastserve.tools.triton_install import TritonInstall


def backend_model_file() -> Path:
    """Our backend's ``model.py``: in a wheel it is part of the package, in the repository it lies beside it."""
    package = Path(fastserve.__file__).resolve().parent
    candidates = (package / "triton" / "_backend" / "model.py", package.parent / "model.py")
    for path in candidates:
        if path.is_file():
            return path
    raise ToolError(
        f"the backend's model.py is missing (looked at {candidates[0]} and {candidates[1]}); install triton-fastserve again"
    )


def build_backend_directory(directory: Path, install: TritonInstall) -> Path:
    """Create ``directory`` with this layout and return it. Raises :class:`ToolError` when our ``model.py`` is missing.

    ::

        python/     copies: Triton refuses a backend library whose real path lies outside the backend directory
        fastserve/  links: model.py -> ours, fastserve -> the package
    """
    python, own = directory / "python", directory / "fastserve"
    for path in (python, own):
        path.mkdir(parents=True)
    for file in install.python_backend_files:
        shutil.copy2(file, python / file.name)
    (own / "model.py").symlink_to(backend_model_file())
    (own / "fastserve").symlink_to(Path(fastserve.__file__).resolve().parent)
    return directory
