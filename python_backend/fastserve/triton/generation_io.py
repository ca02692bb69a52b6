"""The tensors of a text-generation model, once: export writes them to config.pbtxt, the backend auto-completes and parses them.

Names, types and shapes are those of Triton's vLLM backend; ``input_ids``, ``return_output_ids`` and ``output_ids`` are ours.
Plain data: nothing of Triton is imported here.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class TensorIO:
    """A model input or output as config.pbtxt knows it. ``data_type`` includes the TYPE_ prefix."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: bool = False


TEXT_GENERATION_INPUTS: tuple[TensorIO, ...] = (
    TensorIO("text_input", "TYPE_STRING", (1,), optional=True),
    TensorIO("input_ids", "TYPE_INT64", (-1,), optional=True),
    TensorIO("stream", "TYPE_BOOL", (1,), optional=True),
    TensorIO("sampling_parameters", "TYPE_STRING", (1,), optional=True),
    TensorIO("exclude_input_in_output", "TYPE_BOOL", (1,), optional=True),
    TensorIO("return_finish_reason", "TYPE_BOOL", (1,), optional=True),
    TensorIO("return_cumulative_logprob", "TYPE_BOOL", (1,), optional=True),
    TensorIO("return_logprobs", "TYPE_BOOL", (1,), optional=True),
    TensorIO("return_num_input_tokens", "TYPE_BOOL", (1,), optional=True),
    TensorIO("return_num_output_tokens", "TYPE_BOOL", (1,), optional=True),
    TensorIO("return_output_ids", "TYPE_BOOL", (1,), optional=True),
    TensorIO("return_timing", "TYPE_BOOL", (1,), optional=True),
)

TEXT_GENERATION_OUTPUTS: tuple[TensorIO, ...] = (
    TensorIO("text_output", "TYPE_STRING", (-1,)),
    TensorIO("finish_reason", "TYPE_STRING", (-1,)),
    TensorIO("cumulative_logprob", "TYPE_FP32", (-1,)),
    TensorIO("logprobs", "TYPE_STRING", (-1,)),
    TensorIO("num_input_tokens", "TYPE_UINT32", (1,)),
    TensorIO("num_output_tokens", "TYPE_UINT32", (-1,)),
    TensorIO("output_ids", "TYPE_INT64", (-1,)),
)
