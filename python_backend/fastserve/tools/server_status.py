"""What a running Triton says about itself over plain HTTP: is it there, which models are ready, which failed and why."""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from fastserve.config import GENERATION_TASK, TASK_PARAMETER
from fastserve.errors import ModelNotFound, ToolError

_TIMEOUT_S = 10.0
_POLL_FAILED = re.compile(r"Poll failed for model directory '(?P<name>[^']+)': (?P<reason>.*?)\"?$")


@dataclasses.dataclass(frozen=True, slots=True)
class ModelStatus:
    """One version of one model. ``state``: READY, LOADING, UNLOADING, UNAVAILABLE, or "" when it was never loaded."""

    name: str
    version: str
    state: str
    reason: str

    @property
    def ready(self) -> bool:
        return self.state == "READY"

    @property
    def failed(self) -> bool:
        """It was meant to be loaded and could not be."""
        return self.state == "UNAVAILABLE" and self.reason not in ("", "unloaded")


def request(host: str, port: int, method: str, path: str) -> tuple[int, bytes]:
    """One HTTP exchange, never through a proxy. Raises ``OSError`` or ``http.client.HTTPException``."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def is_live(host: str, port: int) -> bool:
    try:
        return request(host, port, "GET", "/v2/health/live")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def model_statuses(host: str, port: int) -> list[ModelStatus]:
    """Every model of the repository; folders Triton could not make sense of have the state "".

    Raises :class:`ToolError` when Triton answers with an error, and as :func:`request`.
    """
    status, body = request(host, port, "POST", "/v2/repository/index")
    try:
        index = json.loads(body)
        if status != 200 or not isinstance(index, list):
            raise ValueError
    except ValueError:
        said = body.decode("utf-8", "replace").strip()[:300] or "an empty answer"
        raise ToolError(f"Triton cannot list its models, HTTP {status}: {said}") from None
    return [ModelStatus(*(str(entry.get(key, "")) for key in ("name", "version", "state", "reason"))) for entry in index]


def model_task(host: str, port: int, model: str) -> str:
    """What a loaded model is for, as its configuration says; text-generation where it says nothing. Raises as :func:`request`."""
    _, body = request(host, port, "GET", f"/v2/models/{quote(model, safe='')}/config")
    try:
        return str(json.loads(body)["parameters"][TASK_PARAMETER]["string_value"])
    except (ValueError, KeyError, TypeError):
        return GENERATION_TASK


def explain_unknown(statuses: Sequence[ModelStatus], log: Iterable[str]) -> list[ModelStatus]:
    """Folders that were never loaded become failures; why is only in Triton's log."""
    reasons = {match["name"]: match["reason"] for line in log if (match := _POLL_FAILED.search(line))}
    explained = []
    for status in statuses:
        if not status.state:
            reason = reasons.get(status.name, "Triton did not load it; is there a config.pbtxt and a version folder?")
            status = dataclasses.replace(status, state="UNAVAILABLE", reason=reason)
        explained.append(status)
    return explained


def require(statuses: Iterable[ModelStatus], names: Iterable[str]) -> None:
    """Raise :class:`ModelNotFound` when a model of ``names`` is not in the repository."""
    known = sorted({status.name for status in statuses})
    for name in names:
        if name not in known:
            raise ModelNotFound(f"the repository has no model {name}, only: {', '.join(known) or '(none)'}")


def without_usage(log: Sequence[str]) -> list[str]:
    """A log without Triton's list of options: the reason stands before it (an option it does not know) or after it.

    In the list, options are indented by two blanks and their descriptions by a tab.
    """
    start = next((index for index, line in enumerate(log) if line.startswith("Usage:")), len(log))
    end = max((index + 1 for index, line in enumerate(log) if line.startswith(("\t", "  --"))), default=start)
    return [line for line in (*log[:start], *log[max(start, end) :]) if line.strip()]


def describe_failures(statuses: Iterable[ModelStatus]) -> str:
    """One line a failed model: its name and the part of the reason before Python's stack."""
    return "\n".join(f"  {status.name}: {_short(status.reason)}" for status in statuses if status.failed)


def _short(reason: str) -> str:
    return " ".join(reason.partition("\n\nAt:")[0].split())
