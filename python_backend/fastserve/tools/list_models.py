"""``fastserve list``: the models of a repository as they lie on disk, or of a running server as it says."""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastserve.errors import ManifestError, ModelNotFound, ToolError
from fastserve.manifest import MANIFEST_FILE, ModelManifest
from fastserve.tools import console, server_status
from fastserve.tools.client import ServerUnreachable
from fastserve.tools.request_arguments import DEFAULT_REPOSITORY, DEFAULT_URLS

if TYPE_CHECKING:
    from rich.table import Table

DEFAULT_SERVER = DEFAULT_URLS["http"]
EXPORTED, DAMAGED, FOREIGN = "exported", "damaged", "not FastServe's"

_EPILOG = """examples:
  fastserve list                                       what lies in ./model_repository
  fastserve list --model-repository ./models --json
  fastserve list --server                              what http://127.0.0.1:8000 serves
  fastserve list --server http://host:9000 --model-repository ./models      both: state from there, type and size from here
"""


@dataclasses.dataclass(frozen=True, slots=True)
class ListedModel:
    """One version of one model. None: not known from here. ``state``: on disk exported, damaged or not FastServe's; on a server
    Triton's READY, LOADING, UNLOADING, UNAVAILABLE. ``reason``: of what is damaged or unavailable. ``size``: in bytes."""

    name: str
    version: str
    state: str
    task: str | None = None
    dtype: str | None = None
    size: int | None = None
    reason: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("--model-repository", type=Path, metavar="DIR", help=f"default: ./{DEFAULT_REPOSITORY}")
    parser.add_argument(
        "--server", nargs="?", const=DEFAULT_SERVER, metavar="URL", help=f"ask this server, over HTTP (default: {DEFAULT_SERVER})"
    )
    parser.add_argument("--json", action="store_true", help="one JSON array instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """0; 1 when a model is damaged or was meant to be loaded and could not be."""
    if arguments.server is None:
        models = in_repository(arguments.model_repository or DEFAULT_REPOSITORY)
    else:
        on_disk = [] if arguments.model_repository is None else in_repository(arguments.model_repository)
        models = with_files(on_server(arguments.server), on_disk)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(model) for model in models], indent=1))
    elif models:
        show(models)
    else:
        console.stdout().print("No models (`fastserve export` makes one).")
    return 1 if any(model.reason for model in models) else 0


def in_repository(repository: Path) -> list[ListedModel]:
    """Every version folder, by name and version. Raises :class:`ModelNotFound` when there is no such repository."""
    if not repository.is_dir():
        raise ModelNotFound(f"model repository {repository} does not exist; `fastserve export` creates one")
    versions = [
        (folder.name, int(version.name), version)
        for folder in repository.iterdir()
        if folder.is_dir()
        for version in folder.iterdir()
        if version.is_dir() and version.name.isdecimal()
    ]
    return [_from_folder(name, version) for name, _, version in sorted(versions)]


def _from_folder(name: str, version: Path) -> ListedModel:
    size = sum(file.stat().st_size for file in version.rglob("*") if file.is_file())
    if not (version / MANIFEST_FILE).exists():
        return ListedModel(name, version.name, FOREIGN, size=size)
    try:
        manifest = ModelManifest.load(version)
    except ManifestError as error:
        return ListedModel(name, version.name, DAMAGED, size=size, reason=str(error))
    return ListedModel(name, version.name, EXPORTED, manifest.task, manifest.model.dtype, size)


def on_server(url: str) -> list[ListedModel]:
    """Every model a Triton knows; without the task of those that are not loaded. ``url``: ``http://host:port`` or ``host:port``.

    Raises :class:`ServerUnreachable`, and :class:`ToolError` for another kind of URL or a server that is no Triton.
    """
    host, port = _address(url)
    try:
        statuses = server_status.model_statuses(host, port)
        return [
            ListedModel(
                status.name,
                status.version,
                status.state or "UNAVAILABLE",
                server_status.model_task(host, port, status.name) if status.ready else None,
                reason=status.reason if status.failed else "",
            )
            for status in sorted(statuses, key=lambda status: (status.name, status.version))
        ]
    except (OSError, http.client.HTTPException) as error:
        said = str(error) or type(error).__name__
        raise ServerUnreachable(
            f"no answer from {url} ({said}); is the server running there? `fastserve serve` starts one"
        ) from None


def with_files(served: list[ListedModel], on_disk: list[ListedModel]) -> list[ListedModel]:
    """The served models with type and size of the version of the same name on disk."""
    files = {(model.name, model.version): model for model in on_disk}
    found = [(model, files.get((model.name, model.version))) for model in served]
    return [
        model if file is None else dataclasses.replace(model, task=model.task or file.task, dtype=file.dtype, size=file.size)
        for model, file in found
    ]


def show(models: list[ListedModel]) -> None:
    out = console.stdout()
    out.print(_table(models))
    for model in models:
        if model.reason:
            out.print(f"{model.name} {model.version}: {' '.join(model.reason.split())}")


def _table(models: list[ListedModel]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for heading in ("model", "version", "state", "task", "dtype", "size"):
        table.add_column(heading, justify="right" if heading == "size" else "left", overflow="fold")
    for model in models:
        size = "-" if model.size is None else f"{model.size / 1e6:,.1f} MB"
        style = "bold red" if model.reason else "green" if model.state in (EXPORTED, "READY") else ""
        cells = (model.name, model.version or "-", model.state, model.task or "-", model.dtype or "-", size)
        table.add_row(*(Text(cell, style if index == 2 else "") for index, cell in enumerate(cells)))
    return table


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ToolError(f"--server: got {url}: {error}; allowed: http://host:port") from None
    if parts.scheme != "http" or host is None:
        raise ToolError(f"--server: got {url}, allowed: http://host:port, Triton's HTTP address")
    return host, port or 8000
