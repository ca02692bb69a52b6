"""Tensors to an :class:`EncodingInput` and answers to tensors: the contract of ``encoder_io`` in both directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from fastserve.errors import InvalidRequest
from fastserve.tasks.encoding_task import EncodingInput
from fastserve.triton.text_tensors import decode_text

Tensors = Mapping[str, npt.NDArray[Any]]


def parse_encoding(tensors: Tensors, parameters: Mapping[str, Any]) -> EncodingInput:
    """``tensors``: by input name, absent ones left out; strings are bytes objects. ``parameters``: Triton's request
    parameters. Raises InvalidRequest naming the field.

    Triton has checked names, types and dims against config.pbtxt, and that every tensor has the same batch dimension.
    """
    texts: dict[str, Sequence[str]] = {}
    spans: dict[str, Sequence[tuple[int, int]]] = {}
    for name, tensor in tensors.items():
        if not tensor.size:
            raise InvalidRequest(name, f"no values in a tensor of shape {list(tensor.shape)}", "at least one value")
        if tensor.dtype.hasobject:
            texts[name] = [decode_text(name, value) for value in tensor.reshape(-1).tolist()]
        else:
            spans[name] = [(start, end) for start, end in tensor.tolist()]
    return EncodingInput(texts, spans, parameters)


def select_outputs(tensors: Tensors, names: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    """Of an answer what the client asked for. ``names``: outputs of the contract."""
    return {name: tensors[name] for name in names}
