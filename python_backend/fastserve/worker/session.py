"""ONNX Runtime sessions: how every graph is loaded, and what a failed run means."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import TypeAlias

import onnxruntime as ort

from fastserve.errors import ManifestError, StepFailed
from fastserve.manifest import ModelManifest
from fastserve.worker.kernels import library_path
from fastserve.worker.shared_weights import WEIGHTS_FILE, cache_directory, shared_model

logger = logging.getLogger(__name__)

RUNTIME_VERSION: str = ort.__version__
"""Of ONNX Runtime, from whichever of its distributions."""

Providers: TypeAlias = tuple[tuple[str, dict[str, str]], ...]
"""ONNX Runtime's execution providers, preferred first, and their options."""
CPU_PROVIDERS: Providers = (("CPUExecutionProvider", {}),)

RETRYABLE_MESSAGES = ("Failed to allocate memory", "bad_alloc")
"""ORT errors that a second try may survive: another process may have returned memory meanwhile."""
_WORTH_A_FILE = 0.01
"""Share of a model's files that is worth a shared copy of all of it on the disk."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionSettings:
    """How the runs of a session use the machine."""

    num_threads: int = 0
    """Of one run; 0: one per core."""
    spinning: bool = True
    """Whether threads of the session that have nothing to do burn their cores for a moment, in the hope of work, before they
    sleep."""
    share_weights: bool = False
    """Map weights that are ready for the kernels, so that every process of this machine that does so has the same copy in memory
    (:mod:`fastserve.worker.shared_weights`); where that fails, the session has weights of its own."""
    profile: Path | None = None
    """Write down what every node takes; ONNX Runtime adds a time and ``.json`` to this path when the session ends."""
    providers: Providers = CPU_PROVIDERS
    optimize: bool = True
    """Let ONNX Runtime rewrite the graph for speed."""


def open_session(directory: Path, manifest: ModelManifest, name: str, settings: SessionSettings) -> ort.InferenceSession:
    """A session over the graph ``name`` of an exported model. Raises ManifestError or ToolError."""
    file = directory / name
    if settings.share_weights and _gains_by_sharing(manifest, name):
        try:
            shared = shared_model(name, manifest.files, cache_directory(), lambda target: save_optimized(file, target))
            if shared is not None:
                return create_session(shared, settings)
        except ManifestError as error:  # it cannot be written, or is damaged; if it is the graph itself, we shall hear it again
            logger.warning("weights are not shared with other instances: %s", error)
    return create_session(file, settings)


def _gains_by_sharing(manifest: ModelManifest, name: str) -> bool:
    """Whether ONNX Runtime would copy more of the graph's weights than is worth a file. What it does not copy is mapped, and in
    memory once for all processes anyway."""
    copied = [graph.reordered_bytes for graph in manifest.graphs.values() if name in graph.files.values()]
    if not copied or copied[0] is None:
        return True
    total = sum(file.bytes for file in manifest.files.values())
    gains = copied[0] > _WORTH_A_FILE * total
    if not gains:
        logger.info(
            "%.1f of %.1f MB are not mapped as they lie in the file: no shared copy is made", copied[0] / 1e6, total / 1e6
        )
    return gains


def save_optimized(file: Path, target: Path) -> None:
    """Write the graph as ONNX Runtime optimises it for this machine to ``target``, and beside it its weights, also in the
    order the kernels want them. Raises ManifestError or ToolError."""
    options = _options(SessionSettings(spinning=False))
    options.optimized_model_filepath = str(target)
    prefix = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{prefix}_file_name", WEIGHTS_FILE)
    options.add_session_config_entry(f"{prefix}_min_size_in_bytes", "1024")
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    _load(file, options)


def create_session(file: Path, settings: SessionSettings) -> ort.InferenceSession:
    """A session over one graph, with our operators and with weights of its own. Raises ManifestError when the graph cannot be
    loaded, ToolError when the op library is not built."""
    return _load(file, _options(settings), settings.providers)


def _options(settings: SessionSettings) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    options.intra_op_num_threads = settings.num_threads or count_cores()
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # every run has other shapes: a pattern per shape would only grow
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spinning else "0")
    if not settings.optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if settings.profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(settings.profile)
    return options


def _load(file: Path, options: ort.SessionOptions, providers: Providers = CPU_PROVIDERS) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(file), options, providers=list(providers))
    except Exception as error:  # ORT's exceptions share no base class below Exception
        raise ManifestError(f"{file}: ONNX Runtime cannot load it ({error})") from None


def run_failed(error: Exception) -> StepFailed:
    """What ORT raised from a run, as the error of that run."""
    message = str(error)
    return StepFailed(f"the model run failed: {message}", retryable=any(part in message for part in RETRYABLE_MESSAGES))


def count_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
