"""What a running Triton says about itself over plain HTTP: is it there, which models are ready, which failed and why."""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
from collections.abc import Iterable, Sequence

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
    """Every model of the repository; folders Triton could not make sense of have the state ""."""
    index = json.loads(request(host, port, "POST", "/v2/repository/index")[1])
    return [ModelStatus(*(str(entry.get(key, "")) for key in ("name", "version", "state", "reason"))) for entry in index]


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


def describe_failures(statuses: Iterable[ModelStatus]) -> str:
    """One line a failed model: its name and the part of the reason before Python's stack."""
    return "\n".join(f"  {status.name}: {_short(status.reason)}" for status in statuses if status.failed)


def _short(reason: str) -> str:
    return " ".join(reason.partition("\n\nAt:")[0].split())
