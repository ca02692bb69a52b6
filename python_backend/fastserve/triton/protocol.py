"""Tensors to a :class:`GenerationInput` and answers to tensors: the contract of ``generation_io`` in both directions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.core.request import FinishReason
from fastserve.errors import InvalidRequest
from fastserve.tasks.sampling_parameters import read_truth
from fastserve.tasks.text_generation import GenerationInput
from fastserve.triton.generation_io import TEXT_GENERATION_INPUTS
from fastserve.triton.text_tensors import decode_text

TENSORS_ONLY = ("text_input", "input_ids", "sampling_parameters")
"""Inputs that cannot come as request parameters."""

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class ReturnFlags:
    """Which optional outputs a client wants."""

    finish_reason: bool = False
    cumulative_logprob: bool = False
    num_input_tokens: bool = False
    num_output_tokens: bool = False
    output_ids: bool = False
    logprobs: bool = False
    timing: bool = False


def parse_generation(tensors: Tensors, parameters: Mapping[str, Any]) -> tuple[GenerationInput, ReturnFlags]:
    """``tensors``: by input name, absent ones left out. ``parameters``: Triton's request parameters, which count when
    there is no ``sampling_parameters`` tensor; names of optional inputs among them are taken as those inputs.

    Raises InvalidRequest naming the field.
    """
    reader = _Reader(tensors, parameters)
    flags = ReturnFlags(**{field.name: bool(reader.truth(f"return_{field.name}")) for field in dataclasses.fields(ReturnFlags)})
    item = GenerationInput(
        text=reader.text("text_input"),
        input_ids=reader.ids("input_ids"),
        stream=bool(reader.truth("stream")),
        exclude_input_in_output=reader.truth("exclude_input_in_output"),
        parameters=reader.sampling_parameters(),
        return_cumulative_logprob=flags.cumulative_logprob,
        return_logprobs=flags.logprobs,
        return_timing=flags.timing,
    )
    return item, flags


class _Reader:
    """Typed access to one request's inputs."""

    def __init__(self, tensors: Tensors, parameters: Mapping[str, Any]) -> None:
        self._tensors = tensors
        self._parameters = parameters

    def text(self, name: str) -> str | None:
        value = self._single(name)
        if value is None or isinstance(value, str):
            return value
        return decode_text(name, bytes(value))

    def truth(self, name: str) -> bool | None:
        """The tensor, else the request parameter of the same name, else None."""
        value = self._single(name)
        if value is None:
            value = self._parameters.get(name)
        if value is None:
            return None
        try:
            return read_truth(value)
        except ValueError:
            raise InvalidRequest(name, value, "true or false") from None

    def ids(self, name: str) -> list[int] | None:
        tensor = self._tensors.get(name)
        if tensor is not None and tensor.ndim > 1 and tensor.shape[0] != 1:
            raise InvalidRequest(name, f"{tensor.shape[0]} rows", "one row: a request has one prompt")
        return None if tensor is None else tensor.reshape(-1).tolist()

    def sampling_parameters(self) -> Mapping[str, Any]:
        for name in TENSORS_ONLY:
            if name in self._parameters:
                raise InvalidRequest(name, self._parameters[name], "an input tensor of this name, not a request parameter")
        text = self.text("sampling_parameters")
        if text is None:
            own = {spec.name for spec in TEXT_GENERATION_INPUTS}
            return {name: value for name, value in self._parameters.items() if name not in own}
        allowed = 'a JSON object such as {"max_tokens": 100}'
        try:
            values = json.loads(text)
            json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair is a ValueError: it is not text
        except (ValueError, RecursionError):
            raise InvalidRequest("sampling_parameters", text, allowed) from None
        if not isinstance(values, dict):
            raise InvalidRequest("sampling_parameters", text, allowed)
        return values

    def _single(self, name: str) -> Any:
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        if tensor.size != 1:
            raise InvalidRequest(name, f"{tensor.size} values", "one value")
        return tensor.reshape(-1)[0]


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What one response says of an answer: the next part of it, or all of it."""

    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float
    finish_reason: FinishReason | None
    logprobs: str = "null"
    """JSON, see ``tasks/token_logprobs.py``; "null" when they were not asked for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """What one response says of the prompt."""

    num_tokens: int
    logprobs: str | None = None
    """JSON; None in all responses but the first, and when they were not asked for."""


def encode_answers(
    answers: Sequence[Answer], prompt: Prompt, flags: ReturnFlags, timing: str | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Output tensors by name, an element for each answer; ``output_ids`` has all ids of the first answer, then those of the
    second, ... ``timing``: JSON, in the last response. ``finish_reason`` reads "None" until the end; counts and ids are those
    of this response."""
    tensors: dict[str, npt.NDArray[Any]] = {"text_output": _strings([answer.text for answer in answers])}
    if flags.finish_reason:
        reasons = [answer.finish_reason.value if answer.finish_reason else "None" for answer in answers]
        tensors["finish_reason"] = _strings(reasons)
    if flags.cumulative_logprob:
        tensors["cumulative_logprob"] = np.array([answer.cumulative_logprob for answer in answers], np.float32)
    if flags.logprobs:
        tensors["logprobs"] = _strings([answer.logprobs for answer in answers])
    if flags.num_input_tokens:
        tensors["num_input_tokens"] = np.array([prompt.num_tokens], np.uint32)
    if flags.num_output_tokens:
        tensors["num_output_tokens"] = np.array([len(answer.token_ids) for answer in answers], np.uint32)
    if flags.output_ids:
        tensors["output_ids"] = np.array([token_id for answer in answers for token_id in answer.token_ids], np.int64)
    if prompt.logprobs is not None:
        tensors["prompt_logprobs"] = _strings([prompt.logprobs])
    if flags.timing and timing is not None:
        tensors["timing"] = _strings([timing])
    return tensors


def _strings(texts: Sequence[str]) -> npt.NDArray[Any]:
    return np.array([text.encode("utf-8") for text in texts], np.object_)
