"""Finds out how an imported graph may be run: whether a sequence gets the same output alone and padded beside others.

There is no source to compare with. A graph whose arithmetic mixes neighbours, or that reads padding as text, is still right
for one sequence at a time.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastserve.core.encoding import TokenSequence
from fastserve.errors import ProofFailed, StepFailed, UnsupportedModel
from fastserve.export.encoders.proof import ordinary_tokens, output_scale
from fastserve.export.proof import largest_difference
from fastserve.manifest import EncoderSpec, ModelManifest
from fastserve.worker.padded_encoder_runner import ALONE, PADDED, PaddedEncoderRunner

FloatArray = npt.NDArray[np.float32]

PADDING_TOLERANCE = 1e-4
"""Largest difference between a sequence alone and padded, as a share of the outputs' standard deviation."""

_LENGTHS = (1, 5, 33, 70, 24, 25, 24, 2)
_SAME_LENGTH = (4, 6)
"""Two of them whose texts differ and whose lengths do not."""


_SENTENCES = (8, 25)
"""Number, and tokens of each, that are timed."""


@dataclasses.dataclass(frozen=True, slots=True)
class PaddingProof:
    """``batching``: as ``EncoderSpec.batching``. ``measures``: for the manifest. ``gain``: how many times as fast sentences are
    when they share a run."""

    batching: str
    measures: dict[str, float]
    gain: float

    @property
    def difference(self) -> float:
        """Largest between a sequence alone and padded."""
        return self.measures["max_abs_difference_alone_batched"]


def prove_padding(directory: Path, manifest: ModelManifest, *, clock: Callable[[], float] = time.perf_counter) -> PaddingProof:
    """Run the files in ``directory``. Raises UnsupportedModel when the graph cannot run what the manifest says it can,
    ProofFailed when its outputs are no numbers."""
    spec, source = manifest.encoder, manifest.model.source
    assert spec is not None
    runner = PaddedEncoderRunner(directory, dataclasses.replace(manifest, encoder=dataclasses.replace(spec, batching=PADDED)))
    sequences = _sequences(manifest, spec)
    longest = _run(runner, [_random(manifest, spec, spec.max_length, np.random.default_rng(1))], source)
    alone = [output for sequence in sequences for output in _run(runner, [sequence], source)]
    together = _run(runner, sequences, source)
    if not all(np.isfinite(output).all() for output in (*longest, *alone, *together)):
        raise ProofFailed(f"{source}: the graph's outputs for random tokens are not all finite numbers")
    first, second = (alone[index] for index in _SAME_LENGTH)
    if np.array_equal(first, second):
        raise UnsupportedModel(
            f"{source}: the graph gives the same output for different texts of one length: it does not read its "
            "input_ids. Was it exported with one tensor as the example of two inputs?"
        )
    scale = output_scale(alone)
    difference = largest_difference(alone, together)
    measures = {
        "output_scale": scale,
        "max_abs_difference_alone_batched": difference,
        "rows_compared": float(sum(len(np.atleast_2d(output)) for output in alone)),
        "longest_sequence": float(spec.max_length),
    }
    batching = PADDED if difference <= PADDING_TOLERANCE * scale else ALONE
    return PaddingProof(batching, measures, _gain(runner, manifest, spec, clock))


def _run(runner: PaddedEncoderRunner, sequences: list[TokenSequence], source: str) -> list[FloatArray]:
    try:
        return runner.run(sequences)
    except StepFailed as error:
        longest = max(len(sequence.token_ids) for sequence in sequences)
        raise UnsupportedModel(
            f"{source}: the graph cannot run a sequence of {longest} tokens, of ids as the tokenizer and config.json have them; "
            f"allowed: a graph and files that belong together, and a --max-length that it has positions for ({error})"
        ) from error


def _gain(runner: PaddedEncoderRunner, manifest: ModelManifest, spec: EncoderSpec, clock: Callable[[], float]) -> float:
    count, length = _SENTENCES
    generator = np.random.default_rng(2)
    sentences = [_random(manifest, spec, min(length, spec.max_length), generator) for _ in range(count)]
    runner.run(sentences)  # the first run of a size is slower
    at_start = clock()
    runner.run(sentences)
    together = clock()
    for sentence in sentences:
        runner.run([sentence])
    return (clock() - together) / max(together - at_start, 1e-9)


def _sequences(manifest: ModelManifest, spec: EncoderSpec) -> list[TokenSequence]:
    generator = np.random.default_rng(0)
    return [_random(manifest, spec, min(length, spec.max_length), generator) for length in _LENGTHS]


def _random(manifest: ModelManifest, spec: EncoderSpec, length: int, generator: np.random.Generator) -> TokenSequence:
    """Tokens from all of the vocabulary but padding, the last of the vocabulary among them."""
    padding = manifest.tokenizer.pad_token_id if manifest.tokenizer is not None else None
    vocabulary = ordinary_tokens(manifest.model.vocab_size, padding)
    token_ids = generator.choice(vocabulary, length)
    token_ids[0] = vocabulary[-1]
    return TokenSequence(tuple(token_ids.tolist()), rows=tuple(range(length)) if spec.output == "row" else ())
