"""One ONNX Runtime session over an imported encoder graph, which takes a batch of sequences padded to one length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastserve.core.encoding import TokenSequence
from fastserve.errors import ManifestError, StepFailed
from fastserve.manifest import EncoderSpec, ModelManifest
from fastserve.worker.encoder_runner import ROLE
from fastserve.worker.padded_batch import INTEGER_TYPES, PADDED_INPUTS, pad_sequences
from fastserve.worker.session import SessionSettings, open_session, run_failed

FloatArray = npt.NDArray[np.float32]

PADDED, ALONE = "padded", "alone"
"""Values of ``EncoderSpec.batching``: all sequences of a run at once, or one by one and without padding."""


class PaddedEncoderRunner:
    """Runs the graph of one imported encoder. Owned by the engine thread; ``run`` releases the GIL inside ORT.

    Outputs of the graph: one, [batch, length, n] or [batch, n]; or several, each [batch, length], which become the n columns
    of one (where an answer starts and where it ends).
    """

    def __init__(self, directory: Path, manifest: ModelManifest, *, num_threads: int = 0, share_weights: bool = False) -> None:
        """``directory``: the version folder with the files of ``manifest``. ``num_threads``: 0 means one per core.
        ``share_weights``: see ``SessionSettings``.

        Raises ManifestError when the model is no padded encoder.
        """
        spec, graph = manifest.encoder, manifest.graphs.get(ROLE)
        if spec is None or graph is None or spec.batching not in (PADDED, ALONE):
            raise ManifestError(f"encoder.batching: got {spec and spec.batching}, allowed: {PADDED} or {ALONE}")
        file = directory / graph.files["none"]
        if wrong := [
            tensor.name for tensor in graph.inputs if tensor.name not in PADDED_INPUTS or tensor.dtype not in INTEGER_TYPES
        ]:
            raise ManifestError(f"{file}: takes {', '.join(wrong)}, which this version does not provide")
        self._spec: EncoderSpec = spec
        self._dtypes = {tensor.name: tensor.dtype for tensor in graph.inputs}
        self._output_names = [tensor.name for tensor in graph.outputs]
        self._has_rows = len(graph.outputs) > 1 or len(graph.outputs[0].shape) > 2
        pad_token_id = manifest.tokenizer.pad_token_id if manifest.tokenizer is not None else None
        self._pad_token_id = pad_token_id or 0
        settings = SessionSettings(num_threads, spinning=False, share_weights=share_weights)
        self._session = open_session(directory, manifest, file.name, settings)

    def run(self, sequences: Sequence[TokenSequence]) -> list[FloatArray]:
        """For each sequence its part of the output: [n] ("sequence"), [num_tokens, n] ("token") or [num_rows, n] ("row").

        No later run writes to the arrays. Raises StepFailed.
        """
        batches = [[sequence] for sequence in sequences] if self._spec.batching == ALONE else [list(sequences)]
        return [output for batch in batches for output in self._run_padded(batch)]

    def _run_padded(self, sequences: list[TokenSequence]) -> list[FloatArray]:
        feeds = pad_sequences(sequences, self._dtypes, self._pad_token_id)
        try:
            outputs = self._session.run(self._output_names, feeds)
        except Exception as error:  # ORT's exceptions share no base class below Exception
            raise run_failed(error) from error
        output = np.stack(outputs, axis=-1) if len(outputs) > 1 else outputs[0]
        expected = feeds["input_ids"].shape[: 2 if self._has_rows else 1]
        if output.shape[:-1] != expected:
            raise StepFailed(f"the graph gave {list(output.shape)} where {[*expected, 'n']} was expected")
        output = output.astype(np.float32, copy=False)
        return [self._part(output[index], sequence) for index, sequence in enumerate(sequences)]

    def _part(self, output: FloatArray, sequence: TokenSequence) -> FloatArray:
        """What belongs to a sequence, of its own [length, n] or [n]."""
        if not self._has_rows:
            return output
        rows = output[: len(sequence.token_ids)]
        if self._spec.output == "row":
            return rows[list(sequence.rows)]
        if self._spec.output == "token":
            return rows
        first: FloatArray = rows[0].copy()  # a view would keep the rows of the whole run
        return first if self._spec.pooling == "cls" else rows.mean(axis=0)
