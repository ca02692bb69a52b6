"""What steps cost, kept when it was measured and when the model is unloaded, so that a restart measures nothing.

Two sets of costs: what was learned until the model was unloaded, where the next start goes on, and what was measured before there
was any traffic (``"profiled"``), from which limits that are left open are chosen: they are the same at every start.

The file lies in the cache folder, not in the model's: a Triton that polls its repository would take a file that appears there for
a new model, and load it again. It is named for all that the costs depend on, and says so itself; one that is damaged, of
another machine, or another user's is left alone, and the costs are measured anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastserve import __version__
from fastserve.config import EngineConfig
from fastserve.core.cost_model import MIN_SECONDS, CostModel, read_costs
from fastserve.core.step_work import StepCosts
from fastserve.errors import ConfigError
from fastserve.manifest import ModelManifest
from fastserve.worker.session import RUNTIME_VERSION, count_cores

logger = logging.getLogger(__name__)

_SETTINGS = ("max_num_seqs", "max_batched_tokens", "block_size", "kv_cache_dtype", "spinning")
"""Fields of the configuration that change what a step costs or what a profile looks like."""
_PROFILED = "profiled"


def circumstances(manifest: ModelManifest, config: EngineConfig, num_threads: int) -> dict[str, str]:
    """All that the costs depend on: the model, the machine, the versions, the settings."""
    layers = manifest.cache.layers if manifest.cache is not None else ()
    windows = [f"window.{index}={layer.window}" for index, layer in enumerate(layers) if layer.window is not None]
    model = "\n".join([*(f"{name}={entry.sha256}" for name, entry in sorted(manifest.files.items())), *windows])
    return {
        "model": hashlib.sha256(model.encode()).hexdigest(),
        "processor": _processor(),
        "cores": str(count_cores()),
        "threads": str(num_threads),
        "onnxruntime": RUNTIME_VERSION,
        "fastserve": __version__,
        "exported with": manifest.fastserve_version,
        **{name: str(getattr(config, name)) for name in _SETTINGS},
    }


class CostFile:
    """The costs for one set of circumstances. Never raises for what is or is not on the disk."""

    def __init__(self, cache: Path, circumstances: Mapping[str, str]) -> None:
        self.profiled = StepCosts(0.0, 0.0)
        """As measured; of nothing until :meth:`restore` has found them, or whoever measured them has said so."""
        self._circumstances = dict(circumstances)
        key = hashlib.sha256(json.dumps(self._circumstances, sort_keys=True).encode()).hexdigest()[:32]
        self.path = cache / f"costs-{key}.json"

    def restore(self, model: CostModel) -> bool:
        """Let ``model`` start where the file says; whether there was one that could be used."""
        try:
            if not self.path.exists():
                return False
            found = self._read()
            profiled = found.get(_PROFILED)
            if not isinstance(profiled, dict):
                raise ConfigError(f"{_PROFILED}: got {profiled!r}, allowed: an object")
            self.profiled = read_costs(profiled)
            model.restore(found)
        except (OSError, ValueError, ArithmeticError, RecursionError, ConfigError) as error:  # no JSON, no text, no seconds
            logger.warning("%s is not used, the costs of steps are measured: %s", self.path, error)
            return False
        return True

    def _read(self) -> Mapping[str, Any]:
        if self.path.stat().st_uid != os.getuid():
            raise ConfigError("it belongs to another user")
        found = json.loads(self.path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("circumstances") != self._circumstances:
            raise ConfigError("it was not measured for this model, machine and configuration")
        return found

    def keep(self, model: CostModel) -> None:
        """Write the file, whole or not at all. Costs of nothing (a clock that stands still) are not worth keeping."""
        if max(model.costs.base_s, model.costs.token_s) <= MIN_SECONDS:
            return
        kept = {"circumstances": self._circumstances, **model.to_json(), _PROFILED: dataclasses.asdict(self.profiled)}
        text = json.dumps(kept, indent=1) + "\n"
        made: Path | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=self.path.parent, prefix=".costs-", delete=False) as file:
                made = Path(file.name)
                file.write(text)
            made.replace(self.path)
        except OSError as error:
            if made is not None:
                made.unlink(missing_ok=True)
            logger.warning("the costs of steps are not kept, the next start measures them again: %s", error)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part")))
    return next(names, platform.machine())
