"""Whether Triton has anything to complete in the configurations of a model repository.

To ask the Python backend for it, Triton starts a process before the one that serves, and waits more than a second for its end
(``StubLauncher::UpdateHealth`` sleeps that long). What is whole needs none of that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastserve.tools.model_config import read_model_config

DO_NOT_COMPLETE = "--disable-auto-complete-config"
"""Triton's argument; it holds for every model of a server."""


def are_complete(repository: Path) -> bool:
    """Whether every model of the repository, at least one, is FastServe's and its config.pbtxt names all of its contract.

    False where that cannot be told: no client package to read the files with, or one that does not fit the protobuf beside it; a
    file that cannot be read or says something wrong. Triton, which then asks the backend, gives the reasons.
    """
    try:
        configs = [read_model_config(folder) for folder in sorted(repository.iterdir()) if folder.is_dir()]
        return bool(configs) and all(map(_is_complete, configs))
    except Exception:  # packages that do not fit each other raise whatever they like
        return False


def _is_complete(config: dict[str, Any]) -> bool:
    from fastserve.triton.services import contract_of, string_parameters
    from fastserve.triton.tensor_io import gaps, lacks_batcher

    if config.get("backend") != "fastserve":
        return False
    contract = contract_of(string_parameters(config))
    return not gaps(config, contract) and not lacks_batcher(config, contract)
