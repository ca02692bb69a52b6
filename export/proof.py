"""The closing proof: the exported graph, run by the runtime's own classes, against the source model.

Every logit row of every short test sequence, and the last rows of the long ones, are compared in four ways of running the
graph that a server mixes freely: all prompts packed in one run and then decoded together, prompts cut into chunks of different
sizes beside decodes, each sequence alone, and with an fp16 and an int8 cache (reported, not judged).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastserve.errors import ManifestError, ProofFailed
from fastserve.export.options import INT4, INT8
from fastserve.manifest import ModelManifest
from fastserve.worker.batch import SequenceInput, pack
from fastserve.worker.kv_cache import KVCache
from fastserve.worker.model_runner import ModelRunner

FloatArray = npt.NDArray[np.float32]
Schedule = list[list[tuple[int, int, int]]]
"""Runs; each a list of (sequence, first token, number of tokens)."""

LOGIT_TOLERANCE = 1e-3
"""Largest difference from the source, as a share of the logits' standard deviation."""
NEIGHBOUR_TOLERANCE = 1e-5
"""Largest difference between a sequence alone and in a batch, on the same scale."""
ROUNDING_TOLERANCE: Mapping[str, float] = {INT8: 0.3, INT4: 0.6}
"""Largest size of a quantised export's error on texts, as a share of the size of the source's outputs (root mean squares), by its
dtype. Eight bits cost some hundredths, four some tenths; outputs that have nothing to do with the source's would give 1.4, zeros
1. At 0.3, embeddings still point the source's way (cosine 0.95)."""
TIE = 1e-4
"""Two best logits closer than this, on the same scale, may swap."""

_BLOCK_SIZE = 16
_PROMPT_LENGTHS = (1, 5, 33, 70)  # below, within and beyond one block; two and four blocks and a bit
_CHUNKS = (1, 3, 16, 23)
_DECODES = 4
LONGEST_WINDOW = 1024
"""Sliding windows up to this are proven by a sequence that is longer."""
_KEPT_ROWS = 80
"""Rows compared of each sequence: its last ones, where a window shows. A row is as long as the vocabulary."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """What the source model says. ``logits[i]``: [num_rows, vocab_size] of the last tokens of ``sequences[i]``."""

    sequences: list[list[int]]
    logits: list[FloatArray]

    @property
    def scale(self) -> float:
        """The logits' standard deviation; of nearly constant logits, a small share of their size."""
        largest = max(float(np.abs(rows).max()) for rows in self.logits)
        return max(1e-3 * largest, float(np.mean([rows.std() for rows in self.logits])))

    @property
    def first_rows(self) -> list[int]:
        """The token whose row is ``logits[i][0]``."""
        return [len(tokens) - len(rows) for tokens, rows in zip(self.sequences, self.logits, strict=True)]


def reference_run(model: Any, max_model_len: int, windows: set[int]) -> Reference:
    """Run the source model on random sequences, one at a time and without padding. One sequence is longer than each
    sliding window of up to 1024 tokens (an ignored window shows only beyond it)."""
    lengths = [*_PROMPT_LENGTHS, *(window + 20 for window in sorted(windows) if 0 < window <= LONGEST_WINDOW)]
    vocab_size = model.get_input_embeddings().weight.shape[0]
    generator = np.random.default_rng(0)
    sequences = [generator.integers(0, vocab_size, min(n + _DECODES, max_model_len)).tolist() for n in lengths]
    with torch.no_grad():
        logits = [last_rows(model, tokens).float().numpy() for tokens in sequences]
    return Reference(sequences, logits)


def last_rows(model: Any, tokens: list[int]) -> torch.Tensor:
    """The source model's logits [num_rows, vocab_size] after one sequence's last tokens."""
    logits: torch.Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False, logits_to_keep=_KEPT_ROWS).logits
    return logits[0]


def prove(directory: Path, manifest: ModelManifest, reference: Reference) -> dict[str, float]:
    """Run the files in ``directory`` every way and compare. Returns the measures for the manifest; raises ProofFailed."""
    bench = _Bench(directory, manifest, reference)
    lengths = [len(tokens) for tokens in reference.sequences]
    wanted = reference.logits
    together = bench.run(packed_schedule(lengths))
    chunked = bench.run(chunked_schedule(lengths))
    measures = {
        "logit_scale": reference.scale,
        "max_abs_logit_difference": largest_difference(together, wanted),
        "max_abs_logit_difference_chunked": largest_difference(chunked, wanted),
        "max_abs_difference_packed_chunked": largest_difference(chunked, together),
        "max_abs_difference_alone_batched": float(
            np.max(
                [largest_difference([bench.run(solo_schedule(i, length))[i]], [together[i]]) for i, length in enumerate(lengths)]
            )
        ),
        "rows_compared": float(sum(map(len, wanted))),
        "longest_sequence": float(max(lengths)),
    }
    measures |= greedy_agreement(together, wanted, reference.scale)
    tolerance = ROUNDING_TOLERANCE.get(manifest.model.dtype)
    if tolerance is not None:
        measures |= likeness(together, wanted)
    del bench, together, chunked
    for kv_dtype in ("fp16", "int8"):
        rows = _Bench(directory, manifest, reference, kv_dtype).run(packed_schedule(lengths))
        measures[f"max_abs_logit_difference_kv_{kv_dtype}"] = largest_difference(rows, wanted)
    if tolerance is not None:
        judge_rounded(measures, tolerance)
    else:
        judge(measures)
    return measures


def judge(measures: dict[str, float]) -> None:
    """Raises ProofFailed when a measure is out of tolerance (also NaN)."""
    scale = measures["logit_scale"]
    limits: dict[str, float] = {
        "max_abs_logit_difference": LOGIT_TOLERANCE * scale,
        "max_abs_logit_difference_chunked": LOGIT_TOLERANCE * scale,
        "max_abs_difference_alone_batched": NEIGHBOUR_TOLERANCE * scale,
        "max_abs_logit_difference_kv_fp16": float(np.finfo(np.float32).max),
        "max_abs_logit_difference_kv_int8": float(np.finfo(np.float32).max),
        "greedy_disagreements": 0.0,
    }
    check_limits(measures, limits)


def judge_rounded(measures: dict[str, float], tolerance: float) -> None:
    """Raises ProofFailed when an int8 or int4 export is broken (also NaN), or a sequence depends on its neighbours or on how its
    prompt is cut at all: the smallest difference before a rounding could become a large one behind it."""
    caches = ("max_abs_logit_difference_kv_fp16", "max_abs_logit_difference_kv_int8")
    limits = {"relative_error": tolerance, **dict.fromkeys(caches, float(np.finfo(np.float32).max))}
    limits |= dict.fromkeys(("max_abs_difference_alone_batched", "max_abs_difference_packed_chunked"), 0.0)
    check_limits(measures, limits, hint=" (a smaller max_perplexity_rise, or keep_fp32, leaves more products in more bits)")


def check_limits(measures: dict[str, float], limits: dict[str, float], *, hint: str = "") -> None:
    """Raises ProofFailed naming a measure above its limit (also NaN). ``hint``: what may mend it."""
    for name, limit in limits.items():
        if not measures[name] <= limit:
            raise ProofFailed(
                f"the exported graph does not reproduce its source: {name} is {measures[name]:.3g}, allowed {limit:.3g}{hint}"
            )


def greedy_agreement(rows: list[FloatArray], wanted: list[FloatArray], scale: float) -> dict[str, float]:
    """How often the best column of a row differs from the source's, near-ties counted apart."""
    ties = disagreements = 0
    for got, right in zip(rows, wanted, strict=True):
        index = np.arange(len(right))
        chosen, best = got.argmax(axis=1), right.argmax(axis=1)
        lost = right[index, best] - right[index, chosen]  # by the source's own measure
        ties += int(((chosen != best) & (lost <= TIE * scale)).sum())
        disagreements += int((lost > TIE * scale).sum())
    return {"greedy_disagreements": float(disagreements), "greedy_ties": float(ties)}


def largest_difference(left: list[FloatArray], right: list[FloatArray]) -> float:
    """Largest absolute difference over all rows; NaN if there is any."""
    return float(np.max([np.abs(a - b).max() for a, b in zip(left, right, strict=True)]))


def likeness(outputs: list[FloatArray], wanted: list[FloatArray]) -> dict[str, float]:
    """How much like the source's outputs are those of an export that cannot equal them."""
    got, right = np.concatenate([o.ravel() for o in outputs]), np.concatenate([o.ravel() for o in wanted])
    rows = [pair for output, source in zip(outputs, wanted, strict=True) for pair in zip(output, source, strict=True)]
    return {
        "relative_error": float(np.linalg.norm(got - right) / np.linalg.norm(right)),
        "mean_abs_difference": float(np.abs(got - right).mean()),
        "best_column_agreement": float(np.mean([row.argmax() == source.argmax() for row, source in rows])),
        "lowest_cosine": float(min(row @ source / (np.linalg.norm(row) * np.linalg.norm(source)) for row, source in rows)),
    }


def packed_schedule(lengths: list[int]) -> Schedule:
    """All prompts in one run, then every sequence decodes one token in each run."""
    prompts = [max(1, length - _DECODES) for length in lengths]
    runs: Schedule = [[(i, 0, prompt) for i, prompt in enumerate(prompts)]]
    for step in range(_DECODES):
        runs.append([(i, prompt + step, 1) for i, prompt in enumerate(prompts) if prompt + step < lengths[i]])
    return [run for run in runs if run]


def chunked_schedule(lengths: list[int]) -> Schedule:
    """Each sequence advances by its own chunk size, so runs mix chunks of prompts with decodes."""
    runs: Schedule = []
    done = [0] * len(lengths)
    while any(at < length for at, length in zip(done, lengths, strict=True)):
        run = []
        for i, length in enumerate(lengths):
            if (count := min(_CHUNKS[i % len(_CHUNKS)], length - done[i])) > 0:
                run.append((i, done[i], count))
                done[i] += count
        runs.append(run)
    return runs


def solo_schedule(sequence: int, length: int) -> Schedule:
    """One sequence by itself: its prompt, then one token in each run."""
    prompt = max(1, length - _DECODES)
    return [[(sequence, 0, prompt)], *([(sequence, at, 1)] for at in range(prompt, length))]


class _Bench:
    """A session, and scattered block tables for the test sequences."""

    def __init__(self, directory: Path, manifest: ModelManifest, reference: Reference, kv_cache_dtype: str = "fp32") -> None:
        assert manifest.cache is not None
        try:
            self._runner = ModelRunner(directory, manifest, kv_cache_dtype=kv_cache_dtype)
        except ManifestError as error:
            raise ProofFailed(f"ONNX Runtime cannot load the exported graph: {error}") from error
        self._sequences = reference.sequences
        self._first_rows = reference.first_rows
        self._vocab_size = manifest.model.vocab_size
        counts = [-(-len(tokens) // _BLOCK_SIZE) for tokens in self._sequences]
        ids = (np.random.default_rng(1).permutation(sum(counts)) + 1).tolist()  # block 0 stays empty
        self._tables = [[ids.pop() for _ in range(count)] for count in counts]
        self._cache_shape = (manifest.cache, sum(counts) + 1, _BLOCK_SIZE, kv_cache_dtype)

    def run(self, schedule: Schedule) -> list[FloatArray]:
        """The rows of the reference for the sequences in ``schedule``, none for others; rows it does not reach are NaN."""
        cache = KVCache(*self._cache_shape)
        reached = {i for run in schedule for i, _, _ in run}
        counts = [len(t) - first for t, first in zip(self._sequences, self._first_rows, strict=True)]
        rows = [np.full((n if i in reached else 0, self._vocab_size), np.nan, np.float32) for i, n in enumerate(counts)]
        for run in schedule:
            inputs = [
                SequenceInput(self._sequences[i][start : start + count], start, self._tables[i], samples=True)
                for i, start, count in run
            ]
            wanted = [(i, at) for i, start, count in run for at in range(start, start + count)]
            kept = [row for row, (i, at) in enumerate(wanted) if at >= self._first_rows[i]]
            batch = dataclasses.replace(pack(inputs, _BLOCK_SIZE), logits_rows=np.array(kept, np.int64))
            logits = self._runner.run(batch, cache)
            for row, part in zip(kept, logits, strict=True):
                i, at = wanted[row]
                rows[i][at - self._first_rows[i]] = part
        return rows
