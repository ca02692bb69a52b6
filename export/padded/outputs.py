"""Finds the output of a ready-made graph that a task can use, by running it: declared shapes are often vague or wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from fastserve.core.encoding import TokenSequence
from fastserve.errors import ManifestError, UnsupportedModel
from fastserve.export.padded.graph import BATCH, LENGTH
from fastserve.manifest import TensorSpec
from fastserve.worker.padded_batch import pad_sequences
from fastserve.worker.session import SessionSettings, create_session

Shape = tuple[int | str, ...]

_TRIALS = ((2, 5), (3, 7))
"""(sequences, tokens of each): nothing but batch and length differs between the two."""

_OF_TOKENS = ("token-classification", "question-answering", "fill-mask")
_EMBEDDINGS = "feature-extraction"
_POOLED_NAMES = ("sentence_embedding", "sentence_embeddings", "embeddings", "embedding")
"""What embeddings of whole texts are called. Others of the same shape may be something else, such as BERT's pooler_output."""
_ENDS_OF_ANSWER = ("start_logits", "end_logits")

_FLOATS = ("float32", "float16")


def outputs_of(file: Path, inputs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """The graph's outputs, in its order. Axes that follow the inputs are called "batch" and "length".

    Raises UnsupportedModel when the graph cannot be loaded, or not be run with any number of sequences of any length.
    """
    try:
        session = create_session(file, SessionSettings(spinning=False))
    except ManifestError as error:
        raise UnsupportedModel(str(error)) from error
    names = [output.name for output in session.get_outputs()]
    dtypes = {tensor.name: tensor.dtype for tensor in inputs}
    found = []
    for batch, length in _TRIALS:
        feeds = pad_sequences([TokenSequence((0,) * length)] * batch, dtypes)
        try:
            found.append(session.run(names, feeds))
        except Exception as error:  # ORT's exceptions share no base class below Exception
            raise UnsupportedModel(
                f"{file}: cannot run {batch} sequences of {length} tokens; allowed: a graph that takes any number of sequences, "
                f"of any length ({error})"
            ) from error
    return [
        TensorSpec(name, str(first.dtype), axes_of(first.shape, second.shape))
        for name, first, second in zip(names, *found, strict=True)
    ]


def axes_of(first: tuple[int, ...], second: tuple[int, ...]) -> Shape:
    """What the axes of a tensor are, from its shapes in the two trials; "?" for what is neither fixed nor an input's."""
    if len(first) != len(second):
        return ("?",)
    named = dict(zip(zip(*_TRIALS, strict=True), (BATCH, LENGTH), strict=True))
    return tuple(named.get(sizes, sizes[0] if len(set(sizes)) == 1 else "?") for sizes in zip(first, second, strict=True))


def choose_outputs(file: Path, outputs: list[TensorSpec], task: str) -> tuple[TensorSpec, ...]:
    """The output for ``task``: named logits, or the first that fits; of question answering also two, start and end logits; of
    embeddings those of texts before those of tokens. Raises UnsupportedModel."""
    numbers = [output for output in outputs if output.dtype in _FLOATS and (task != _EMBEDDINGS or "logits" not in output.name)]
    ends = [output for name in _ENDS_OF_ANSWER for output in numbers if output.name == name and output.shape == (BATCH, LENGTH)]
    if task == "question-answering" and len(ends) == 2:
        return tuple(ends)
    for fits in _fitting(task):
        if chosen := sorted(filter(fits, numbers), key=lambda output: output.name != "logits"):
            return (chosen[0],)
    shown = "; ".join(f"{output.name} {output.dtype} [{', '.join(map(str, output.shape))}]" for output in outputs)
    raise UnsupportedModel(f"{file}: none of its outputs is one for {task} ({shown}); allowed: {_wanted(task)}, {_FLOATS[0]}")


def _fitting(task: str) -> list[Callable[[TensorSpec], bool]]:
    """What an output may be like, best first."""
    if task == _EMBEDDINGS:
        return [lambda output: _is_of_texts(output) and output.name in _POOLED_NAMES, _is_of_tokens, _is_of_texts]
    if task == "question-answering":
        return [lambda output: output.shape == (BATCH, LENGTH, 2)]
    return [_is_of_tokens if task in _OF_TOKENS else _is_of_texts]


def _wanted(task: str) -> str:
    of_tokens, of_texts = f"[{BATCH}, {LENGTH}, n]", f"[{BATCH}, n]"
    if task == "question-answering":
        return f"{' and '.join(_ENDS_OF_ANSWER)} [{BATCH}, {LENGTH}], or one [{BATCH}, {LENGTH}, 2]"
    if task == _EMBEDDINGS:
        return f"{of_texts} or {of_tokens}"
    return of_tokens if task in _OF_TOKENS else of_texts


def _is_of_tokens(output: TensorSpec) -> bool:
    return output.shape[:2] == (BATCH, LENGTH) and len(output.shape) == 3 and isinstance(output.shape[2], int)


def _is_of_texts(output: TensorSpec) -> bool:
    return output.shape[:1] == (BATCH,) and len(output.shape) == 2 and isinstance(output.shape[1], int)
