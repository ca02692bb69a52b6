"""The model a served one was made from, run by transformers in this process, as a predictor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from fastserve.errors import ToolError
from fastserve.manifest import EncoderSpec
from fastserve.tools.encoder_client import EncoderRequest, Outputs


@dataclasses.dataclass(frozen=True, slots=True)
class SourceModel:
    """See :class:`fastserve.tools.evaluation.prediction.Predictor`. ``notes``: what a reader must know of this model."""

    model: Any
    """A ``fastserve.export`` model; tools know no torch."""
    labels: Sequence[str]
    notes: tuple[str, ...]
    concurrency: int = 1

    def answer(self, request: EncoderRequest) -> Outputs:
        outputs: Outputs = self.model.answer(request.texts, request.spans, request.candidate_labels, request.parameters)
        return outputs


def load_source_model(directory: str, task: str, served: EncoderSpec | None, labels: Sequence[str] | None = None) -> SourceModel:
    """The fine-tuned model, or with ``labels`` the one before it was fine-tuned, with a head for these that has learnt nothing
    where it has none. ``served``: what is known of the served model.

    Raises as export's loading does, and :class:`ToolError` when torch or transformers is missing.
    """
    model = _loader()(directory, task, served, labels)
    return SourceModel(model, model.labels, model.notes)


def _loader() -> Callable[..., Any]:
    try:
        from fastserve.export.source_predictions import load
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("fastserve"):
            raise
        raise ToolError(
            f"--compare and --base run the source model with {error.name}, which is not installed: "
            "pip install 'triton-fastserve[export]'"
        ) from None
    return load
