"""One ONNX Runtime session over a packed graph: one run per iteration, the KV pool bound once and written in place."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.errors import ConfigError, ManifestError
from fastserve.manifest import ModelManifest
from fastserve.worker.batch import ForwardBatch
from fastserve.worker.device import HOST
from fastserve.worker.kv_cache import KVCache
from fastserve.worker.session import CPU_PROVIDERS, SessionSettings, open_session, run_failed

BATCH_FIELDS = frozenset(field.name for field in dataclasses.fields(ForwardBatch))


class ModelRunner:
    """Runs the decoder graph of one exported model. Owned by the engine thread; ``run`` releases the GIL inside ORT."""

    def __init__(
        self,
        directory: Path,
        manifest: ModelManifest,
        *,
        kv_cache_dtype: str = "fp32",
        session: SessionSettings | None = None,
        role: str = "decoder",
    ) -> None:
        """``directory``: the version folder with the files of ``manifest``. ``session``: None means the defaults.

        Raises ConfigError when the model has no graph for ``kv_cache_dtype``, ToolError when the op library is not built.
        """
        graph = manifest.graphs[role]
        if kv_cache_dtype not in graph.files:
            raise ConfigError(f"kv_cache_dtype: got {kv_cache_dtype}, allowed: {' or '.join(graph.files)} (graphs of this model)")
        file = directory / graph.files[kv_cache_dtype]
        settings = session or SessionSettings()
        self._session = open_session(directory, manifest, file.name, settings)
        self._in_place = settings.providers == CPU_PROVIDERS
        if unknown := [spec.name for spec in graph.inputs if not _is_cache(spec.name) and spec.name not in BATCH_FIELDS]:
            raise ManifestError(f"{file}: takes {', '.join(unknown)}, which this version does not provide")
        self._binding = self._session.io_binding()
        self._names = tuple(spec.name for spec in graph.inputs if not _is_cache(spec.name))
        self._bound: dict[str, npt.NDArray[Any]] = {}  # what was last bound to each of them
        self._bound_rows = 0  # of the logits
        self._vocab_size = manifest.model.vocab_size
        self._bound_cache: KVCache | None = None
        self._logits: npt.NDArray[np.float32] = np.empty((0, self._vocab_size), np.float32)

    def run(self, batch: ForwardBatch, kv_cache: KVCache) -> npt.NDArray[np.float32]:
        """Logits [num_rows, vocab_size] of the rows that sample, float32.

        The array is a view of a buffer that the next run overwrites. Raises StepFailed; the pool may then hold
        half-written slots, which nobody reads because nothing was committed.
        """
        if self._bound_cache is not kv_cache:
            self._bind_cache(kv_cache)
        for name in self._names:
            self._bind_input(name, getattr(batch, name))
        # A run of prefill chunks alone samples nothing; the graph still needs a row to gather.
        num_rows = max(batch.num_rows, 1)
        if batch.num_rows == 0:
            self._bind_input("logits_rows", np.zeros(1, np.int64))
        self._bind_logits(num_rows)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # ORT's exceptions share no base class below Exception
            raise run_failed(error) from error
        return self._logits[: batch.num_rows]

    def _bind_cache(self, kv_cache: KVCache) -> None:
        kv_cache.bind(self._binding)
        self._bound_cache = kv_cache

    def _bind_input(self, name: str, array: npt.NDArray[Any]) -> None:
        """An array that is bound already is not bound again: the session reads whatever it holds when it runs. But what binding
        brings to another device is a copy."""
        if self._in_place and self._bound.get(name) is array:
            return
        self._bound[name] = array = np.ascontiguousarray(array)
        HOST.bind(self._binding, name, array)  # ONNX Runtime brings it from there to where the graph runs

    def _bind_logits(self, num_rows: int) -> None:
        if len(self._logits) < num_rows:
            self._logits = np.empty((num_rows, self._vocab_size), np.float32)
        elif num_rows == self._bound_rows:
            return
        self._bound_rows = num_rows
        self._binding.bind_output("logits", "cpu", 0, np.float32, (num_rows, self._vocab_size), self._logits.ctypes.data)


def _is_cache(name: str) -> bool:
    return name.startswith(("key_cache.", "value_cache."))
