"""One ONNX Runtime session over a packed encoder graph: one run over a flat token axis, one output array each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastserve.core.encoding import TokenSequence
from fastserve.errors import ManifestError, StepFailed
from fastserve.manifest import EncoderSpec, ModelManifest
from fastserve.worker.encoder_batch import ENCODER_INPUTS, pack_sequences
from fastserve.worker.session import SessionSettings, open_session, run_failed

FloatArray = npt.NDArray[np.float32]

ROLE = "encoder"
"""The encoder's name among the graphs of a manifest; its only file is that without a cache."""


class EncoderRunner:
    """Runs the graph of one exported encoder. Owned by the engine thread; ``run`` releases the GIL inside ORT."""

    def __init__(self, directory: Path, manifest: ModelManifest, *, num_threads: int = 0, share_weights: bool = False) -> None:
        """``directory``: the version folder with the files of ``manifest``. ``num_threads``: 0 means one per core.
        ``share_weights``: see ``SessionSettings``.

        Raises ManifestError when the model is no packed encoder, ToolError when the op library is not built.
        """
        if manifest.encoder is None or ROLE not in manifest.graphs:
            raise ManifestError(f"task: got {manifest.task}, allowed: the task of an encoder")
        graph = manifest.graphs[ROLE]
        file = directory / graph.files["none"]
        self._spec: EncoderSpec = manifest.encoder
        self._position_offset = manifest.position_offset
        self._input_names = [spec.name for spec in graph.inputs]
        self._output_names = [graph.outputs[0].name]
        if unknown := [name for name in self._input_names if name not in ENCODER_INPUTS]:
            raise ManifestError(f"{file}: takes {', '.join(unknown)}, which this version does not provide")
        # A core that spins is missed by Triton and by our other threads: with all of them at work, runs without spinning took
        # two thirds of the time and of the processor's time (MiniLM, 250 tokens, 2 cores).
        settings = SessionSettings(num_threads, spinning=False, share_weights=share_weights)
        self._session = open_session(directory, manifest, file.name, settings)

    def run(self, sequences: Sequence[TokenSequence]) -> list[FloatArray]:
        """For each sequence its part of the output: [n] ("sequence"), [num_tokens, n] ("token") or [num_rows, n] ("row").

        The arrays are views of one that belongs to this run; no later run writes to it. Raises StepFailed.
        """
        feeds = pack_sequences(sequences, self._input_names, self._position_offset)
        sizes = self._sizes(sequences)
        if "logits_rows" in feeds and not feeds["logits_rows"].size:
            feeds["logits_rows"] = np.zeros(1, np.int64)  # nobody wants a row; the graph still needs one to gather
        try:
            (output,) = self._session.run(self._output_names, feeds)
        except Exception as error:  # ORT's exceptions share no base class below Exception
            raise run_failed(error) from error
        if len(output) != max(sum(sizes), 1):
            raise StepFailed(f"the graph gave {len(output)} rows where {sum(sizes)} were expected ({self._spec.output})")
        if self._spec.output == "sequence":
            return list(output)
        ends = list(itertools.accumulate(sizes))
        return [output[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    def _sizes(self, sequences: Sequence[TokenSequence]) -> list[int]:
        """Rows of the output that belong to each sequence."""
        if self._spec.output == "token":
            return [len(sequence.token_ids) for sequence in sequences]
        if self._spec.output == "row":
            return [len(sequence.rows) for sequence in sequences]
        return [1] * len(sequences)
