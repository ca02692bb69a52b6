"""The tensors of encoder models, task by task, once: export writes them to config.pbtxt, the backend auto-completes and parses
them.

Every tensor has a batch dimension in front of these dims. Nothing of Triton is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastserve.config import TASK_PARAMETER
from fastserve.triton.tensor_io import Contract, TensorIO

DEFAULT_MAX_BATCH_SIZE = 64


def _text(name: str, *, optional: bool = False) -> TensorIO:
    return TensorIO(name, "TYPE_STRING", (1,), optional)


def _span(name: str) -> TensorIO:
    """Characters [start, end) of text_input."""
    return TensorIO(name, "TYPE_INT32", (2,), optional=True)


_RESULT = _text("result")
"""The answer as JSON, ready to show."""
_SCORED_LABELS = (
    _text("label"),
    TensorIO("score", "TYPE_FP32", (1,)),
    TensorIO("scores", "TYPE_FP32", (-1,)),
    _RESULT,
)

_INPUTS: dict[str, tuple[TensorIO, ...]] = {
    "text-classification": (_text("text_input"), _text("text_pair", optional=True)),
    "token-classification": (_text("text_input"),),
    "relation-extraction": (_text("text_input"), _span("head"), _span("tail")),
    "question-answering": (_text("question"), _text("context")),
    "feature-extraction": (_text("text_input"),),
    "fill-mask": (_text("text_input"),),
    "reranking": (_text("text_input"), _text("text_pair")),
    "zero-shot-classification": (
        _text("text_input"),
        TensorIO("candidate_labels", "TYPE_STRING", (-1,), optional=True),
    ),
}

_OUTPUTS: dict[str, tuple[TensorIO, ...]] = {
    "text-classification": _SCORED_LABELS,
    "token-classification": (
        TensorIO("label", "TYPE_STRING", (-1,)),
        TensorIO("score", "TYPE_FP32", (-1,)),
        TensorIO("start", "TYPE_INT32", (-1,)),
        TensorIO("end", "TYPE_INT32", (-1,)),
        _RESULT,
    ),
    "relation-extraction": _SCORED_LABELS,
    "question-answering": (
        _text("answer"),
        TensorIO("score", "TYPE_FP32", (1,)),
        TensorIO("start", "TYPE_INT32", (1,)),
        TensorIO("end", "TYPE_INT32", (1,)),
        _RESULT,
    ),
    "feature-extraction": (TensorIO("embedding", "TYPE_FP32", (-1,)),),
    "fill-mask": (
        TensorIO("token_str", "TYPE_STRING", (-1,)),
        TensorIO("token", "TYPE_INT32", (-1,)),
        TensorIO("score", "TYPE_FP32", (-1,)),
        _RESULT,
    ),
    "reranking": (TensorIO("score", "TYPE_FP32", (1,)), _RESULT),
    "zero-shot-classification": _SCORED_LABELS,
}


def encoder_inputs(task: str) -> tuple[TensorIO, ...]:
    """``task``: one of ``fastserve.config.ENCODER_TASKS``."""
    return _INPUTS[task]


def encoder_outputs(task: str) -> tuple[TensorIO, ...]:
    """``task``: one of ``fastserve.config.ENCODER_TASKS``."""
    return _OUTPUTS[task]


def contract(parameters: Mapping[str, str]) -> Contract:
    """``parameters``: of config.pbtxt, the task among them."""
    task = parameters[TASK_PARAMETER]
    return Contract(encoder_inputs(task), encoder_outputs(task), max_batch_size=DEFAULT_MAX_BATCH_SIZE)
