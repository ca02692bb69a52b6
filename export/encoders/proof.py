"""The closing proof of an encoder: the exported graph, run by the runtime's own class, against the source model.

The source reads texts, and random sequences of mixed lengths, one at a time and without padding, and finds their positions by
itself. The graph gets them packed into one run, and each alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastserve.core.encoding import TokenSequence
from fastserve.errors import ManifestError, ProofFailed, StepFailed
from fastserve.export.encoders.heads import Rows
from fastserve.export.encoders.plan import EncoderPlan
from fastserve.export.encoders.sample_texts import PAIR_TASKS, SAMPLE_TEXTS
from fastserve.export.options import INT8
from fastserve.export.proof import (
    LOGIT_TOLERANCE,
    LONGEST_WINDOW,
    NEIGHBOUR_TOLERANCE,
    ROUNDING_TOLERANCE,
    check_limits,
    greedy_agreement,
    largest_difference,
    likeness,
)
from fastserve.export.source import LoadedModel
from fastserve.manifest import ModelManifest
from fastserve.worker.encoder_runner import EncoderRunner

FloatArray = npt.NDArray[np.float32]

_LENGTHS = (1, 2, 5, 12, 19, 33, 48, 70, 131, 1024)
_MARKED = 8
"""Rows compared of each sequence where a graph computes only some."""


@dataclasses.dataclass(frozen=True, slots=True)
class EncoderReference:
    """What the source model says. ``outputs[i]``: [rows, n] of ``sequences[i]``, of which the first ``num_texts`` are texts."""

    sequences: list[TokenSequence]
    outputs: list[FloatArray]
    num_texts: int = 0

    @property
    def scale(self) -> float:
        """Of the outputs, as :func:`output_scale` says."""
        return output_scale(self.outputs)


def output_scale(outputs: Sequence[FloatArray]) -> float:
    """The outputs' standard deviation; of nearly constant ones, a small share of their size."""
    values = np.concatenate([output.ravel() for output in outputs])
    return max(1e-3 * float(np.abs(values).max()), float(values.std()))


def ordinary_tokens(vocab_size: int, padding: int | None) -> npt.NDArray[np.int64]:
    """All token ids but that of padding, ascending."""
    vocabulary = np.arange(vocab_size)
    return vocabulary if padding is None else vocabulary[vocabulary != padding]


def encoder_reference(loaded: LoadedModel, plan: EncoderPlan, task: str) -> EncoderReference:
    """Run the source model. A window of up to 1024 tokens is proven by a sequence that reaches well beyond it on both sides."""
    generator = np.random.default_rng(0)
    known = loaded.model.get_input_embeddings().weight.shape[0]  # a tokenizer may have more ids than the model has rows
    texts = [text for text in _texts(loaded.tokenizer, plan, generator, pairs=task in PAIR_TASKS) if max(text.token_ids) < known]
    sequences = [*texts, *_random_sequences(loaded.model, plan, generator)]
    with torch.no_grad():
        outputs = [_output(loaded.model, sequence, plan.rows) for sequence in sequences]
    return EncoderReference(sequences, outputs, len(texts))


def _texts(tokenizer: Any, plan: EncoderPlan, generator: np.random.Generator, *, pairs: bool) -> list[TokenSequence]:
    """As the source's tokenizer reads them. Where rows are marked, masks stand there."""
    sequences = []
    for first, second in zip(SAMPLE_TEXTS, SAMPLE_TEXTS[1:] + SAMPLE_TEXTS[:1], strict=True):
        encoding = tokenizer(first, second if pairs else None, return_token_type_ids=plan.token_types)
        token_ids = list(encoding["input_ids"])[: plan.longest]
        rows = sorted(generator.choice(len(token_ids), 2, replace=False).tolist()) if plan.rows is Rows.MARKED else []
        for row in rows:
            token_ids[row] = tokenizer.mask_token_id
        types = encoding["token_type_ids"][: plan.longest] if plan.token_types else ()
        sequences.append(TokenSequence(tuple(token_ids), tuple(types), tuple(rows)))
    return sequences


def _random_sequences(model: Any, plan: EncoderPlan, generator: np.random.Generator) -> list[TokenSequence]:
    beyond = [2 * window + 20 for window in sorted(plan.windows) if 0 < window <= LONGEST_WINDOW]
    lengths = sorted({min(length, plan.longest) for length in (*_LENGTHS, *beyond)})
    vocabulary = ordinary_tokens(model.get_input_embeddings().weight.shape[0], model.config.pad_token_id)
    sequences = []
    for length in generator.permutation(lengths).tolist():
        token_ids = generator.choice(vocabulary, length).tolist()
        second = int(generator.integers(0, length + 1))
        types = [int(index >= second) for index in range(length)] if plan.token_types else []
        marked = {0, length - 1, *generator.integers(0, length, _MARKED).tolist()} if plan.rows is Rows.MARKED else set()
        sequences.append(TokenSequence(tuple(token_ids), tuple(types), tuple(sorted(marked))))
    return sequences


def _output(model: Any, sequence: TokenSequence, rows: Rows) -> FloatArray:
    """[rows, n]; of question answering [2, num_tokens], so that the best column of a row is an end of the answer."""
    types = {"token_type_ids": torch.tensor([sequence.token_type_ids])} if sequence.token_type_ids else {}
    output = model(input_ids=torch.tensor([sequence.token_ids]), **types)
    if "start_logits" in output:
        result = torch.cat([output.start_logits, output.end_logits])
    elif "logits" in output:
        result = output.logits if output.logits.dim() == 2 else output.logits[0]
        result = result[list(sequence.rows)] if rows is Rows.MARKED else result
    else:
        hidden = output.last_hidden_state
        result = hidden.mean(1) if rows is Rows.MEAN else hidden[:, 0]
    rows_of_output: FloatArray = result.float().numpy()
    return rows_of_output


def prove_encoder(directory: Path, manifest: ModelManifest, reference: EncoderReference) -> dict[str, float]:
    """Run the files in ``directory`` and compare. Returns the measures for the manifest; raises ProofFailed."""
    together, apart = run_both_ways(directory, manifest, reference)
    measures = {
        "output_scale": reference.scale,
        "max_abs_difference": largest_difference(together, reference.outputs),
        "max_abs_difference_alone_batched": largest_difference(apart, together),
        "rows_compared": float(sum(map(len, reference.outputs))),
        "longest_sequence": float(max(len(sequence.token_ids) for sequence in reference.sequences)),
    }
    if manifest.model.dtype == INT8:
        count = reference.num_texts or len(together)
        measures |= likeness(together[:count], reference.outputs[:count])
        judge_int8(measures)
    else:
        measures |= greedy_agreement(together, reference.outputs, reference.scale)
        judge_encoder(measures)
    return measures


def run_both_ways(
    directory: Path, manifest: ModelManifest, reference: EncoderReference
) -> tuple[list[FloatArray], list[FloatArray]]:
    """The outputs of all sequences in one run, and of each alone; shaped like the reference's."""
    try:
        runner = EncoderRunner(directory, manifest)
    except ManifestError as error:
        raise ProofFailed(f"ONNX Runtime cannot load the exported graph: {error}") from error
    try:
        together = runner.run(reference.sequences)
        apart = [runner.run([sequence])[0] for sequence in reference.sequences]
    except StepFailed as error:
        raise ProofFailed(f"ONNX Runtime cannot run the exported graph: {error}") from error
    answers = manifest.task == "question-answering"
    return [_rows(output, answers) for output in together], [_rows(output, answers) for output in apart]


def _rows(output: FloatArray, answers: bool) -> FloatArray:
    """As :func:`_output` has them."""
    return output.T if answers else np.atleast_2d(output)


def judge_encoder(measures: dict[str, float]) -> None:
    """Raises ProofFailed when a measure of an fp32 export is out of tolerance (also NaN)."""
    limits = {
        "max_abs_difference": LOGIT_TOLERANCE * measures["output_scale"],
        "max_abs_difference_alone_batched": NEIGHBOUR_TOLERANCE * measures["output_scale"],
        "greedy_disagreements": 0.0,
    }
    check_limits(measures, limits)


def judge_int8(measures: dict[str, float]) -> None:
    """Raises ProofFailed when an int8 export is broken (also NaN), or a sequence depends on its neighbours at all: the smallest
    difference before a rounding could become a large one behind it."""
    check_limits(measures, {"relative_error": ROUNDING_TOLERANCE[INT8], "max_abs_difference_alone_batched": 0.0})
