"""The exporter of each task, behind one function."""

from __future__ import annotations

from fastserve.config import GENERATION_TASK
from fastserve.errors import InvalidRequest
from fastserve.export.encoders.export import export_encoder
from fastserve.export.onnx_import import import_onnx
from fastserve.export.options import ExportOptions, ExportResult, Progress, no_progress
from fastserve.export.padded.source import names_onnx
from fastserve.export.text_generation import export_model


def export_any(source: str, options: ExportOptions, progress: Progress = no_progress) -> ExportResult:
    """Export ``source`` for ``options.task``, or import it if it is an ONNX graph.

    Raises ModelNotFound, UnsupportedModel, ProofFailed, InvalidRequest or ToolError.
    """
    if names_onnx(source):
        return import_onnx(source, options, progress)
    if options.labels is not None:
        raise InvalidRequest("labels", str(options.labels), "only for an ONNX file; other models name their labels themselves")
    export = export_model if options.task == GENERATION_TASK else export_encoder
    return export(source, options, progress)
