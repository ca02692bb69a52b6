"""The tensors of a text-generation model, once: export writes them to config.pbtxt, the backend auto-completes and parses them.

Names, types and shapes are those of Triton's vLLM backend; ``input_ids``, ``return_output_ids``, ``return_timing``,
``output_ids``, ``prompt_logprobs`` and ``timing`` are ours.
Nothing of Triton is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastserve.triton.tensor_io import Contract, TensorIO

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
    TensorIO("prompt_logprobs", "TYPE_STRING", (1,)),
    TensorIO("timing", "TYPE_STRING", (1,)),
)


def contract(parameters: Mapping[str, str]) -> Contract:
    """``parameters``: of config.pbtxt."""
    del parameters  # every text-generation model has the same
    return Contract(TEXT_GENERATION_INPUTS, TEXT_GENERATION_OUTPUTS, decoupled=True)
