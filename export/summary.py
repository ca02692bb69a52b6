"""What a person reads after an export: what was exported, how well it was proven, and which files it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from fastserve.export.options import FP32, INT4, INT8, ExportResult
from fastserve.manifest import CUDA, CacheSpec, EncoderSpec, ModelManifest

_IMPORTED = {"padded": "sequences of like length together, padded", "alone": "one sequence each"}
"""What the runs of an imported graph are, by ``EncoderSpec.batching``."""

_NAMES_IN_FULL = 8
"""As many names of modules are shown as they are."""
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
"""In the name of a module: the number of its layer."""


def summary(result: ExportResult) -> Table:
    """One row for each fact, note and file."""
    manifest = result.manifest
    table = Table(title=f"{manifest.model.name} -> {result.directory}", show_header=False, title_justify="left")
    rows = {
        "task": manifest.task,
        "model": f"{manifest.model.model_type}, {manifest.model.num_parameters:,} parameters, {manifest.model.dtype}",
        **({"adapter": f"{manifest.model.adapter}, merged into the weights"} if manifest.model.adapter else {}),
        "vocabulary": f"{manifest.model.vocab_size:,} tokens",
        **(_decoder(manifest, manifest.cache) if manifest.cache is not None else {}),
        **(_encoder(manifest, manifest.encoder) if manifest.encoder is not None else {}),
        "time": ", ".join(f"{stage.lower()} {seconds:.0f} s" for stage, seconds in result.seconds.items()),
    }
    for label, text in rows.items():
        table.add_row(label, Text(text))
    for note in result.notes:
        table.add_row("note", Text(note))
    for name, entry in manifest.files.items():
        table.add_row(name, f"{entry.bytes / 1e6:,.1f} MB")
    return table


def _decoder(manifest: ModelManifest, cache: CacheSpec) -> dict[str, str]:
    proof = manifest.proof
    rows = {
        "attention": f"{len(cache.layers)} layers, {cache.layers[0].kv_num_heads} KV heads of {cache.layers[0].head_size}",
        "longest context": f"{manifest.model.max_model_len:,} tokens",
        "chat template": "yes" if manifest.tokenizer and manifest.tokenizer.chat_template else "no",
        **_cuda(manifest),
        "proof": f"{proof['rows_compared']:.0f} positions, largest logit difference {proof['max_abs_logit_difference']:.2g} "
        f"(chunked {proof['max_abs_logit_difference_chunked']:.2g}, fp16 cache {proof['max_abs_logit_difference_kv_fp16']:.2g}, "
        f"int8 cache {proof['max_abs_logit_difference_kv_int8']:.2g}), logit scale {proof['logit_scale']:.2g}",
        "alone vs batched": _neighbours(proof["max_abs_difference_alone_batched"]),
    }
    if "perplexity" in proof:
        return rows | _rounding(manifest)
    return rows | {"greedy tokens": f"all equal, {proof['greedy_ties']:.0f} near-ties"}


def _rounding(manifest: ModelManifest) -> dict[str, str]:
    """What int8 or int4 took of a language model, and what that costs."""
    proof, dtype = manifest.proof, manifest.model.dtype
    change = proof["perplexity"] / proof["perplexity_fp32"] - 1
    unknown = f", {proof['products_of_unknown_loss']:.0f} products of unknown loss aside"
    rows = {
        f"{dtype} on a text": f"perplexity {proof['perplexity']:.3f}, fp32 {proof['perplexity_fp32']:.3f} ({change:+.1%}, "
        f"standard error {proof['perplexity_rise_error']:.1%}); greedy token agrees in {proof['greedy_agreement']:.1%} of "
        f"{proof['quality_tokens']:,.0f}",
        f"{dtype}, expected": f"perplexity {proof['expected_perplexity_rise']:+.1%}, by the KV cache alone "
        f"{proof['expected_perplexity_rise_of_cache']:+.1%}{unknown if proof['products_of_unknown_loss'] else ''}",
    }
    if dtype == INT4:
        rows["in 4 bits"] = f"{proof['int4_products']:.0f} products, {_share(proof, INT4)}"
    for precision, names in ((INT8, manifest.model.int8_modules), (FP32, manifest.model.fp32_modules)):
        if names:
            rows[f"kept in {precision}"] = f"{_share(proof, precision)}: {', '.join(_shortened(names))}"
    return rows


def _share(proof: Mapping[str, float], precision: str) -> str:
    return f"{proof[f'{precision}_weights_share']:.1%} of the products' weights"


def _shortened(names: Sequence[str]) -> list[str]:
    """The names of modules; where there are many, those that differ in the number of their layer as one:
    layers.{0-3,7}.mlp.down_proj."""
    if len(names) <= _NAMES_IN_FULL:
        return list(names)
    found: dict[str, list[int]] = {}
    for name in names:
        number = _LAYER.search(name)
        found.setdefault(_LAYER.sub("{}", name, count=1), []).extend([int(number[0])] if number else [])
    return [pattern.replace("{}", f"{{{_ranges(numbers)}}}") for pattern, numbers in found.items()]


def _ranges(numbers: Sequence[int]) -> str:
    """ "0-3,7" of 0, 1, 2, 3, 7"""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _cuda(manifest: ModelManifest) -> dict[str, str]:
    if manifest.model.device != CUDA:
        return {}
    proof = manifest.proof
    return {
        "device": f"{CUDA}; proven below by the same graph on the CPU in fp32, not executed on a GPU",
        "fp16 arithmetic": f"largest logit difference {proof['max_abs_logit_difference_fp16']:.2g}, "
        f"{proof['greedy_disagreements_fp16']:.0f} best tokens of {proof['rows_compared']:.0f} differ (the source, on the CPU)",
    }


def _encoder(manifest: ModelManifest, spec: EncoderSpec) -> dict[str, str]:
    proof = manifest.proof
    rows = {"windows": f"{spec.max_length:,} tokens, neighbours share {spec.stride}"}
    if spec.batching in _IMPORTED:
        rows["runs"] = _IMPORTED[spec.batching]
    if spec.labels:
        shown = ", ".join(spec.labels[:8]) + (", ..." if len(spec.labels) > 8 else "")
        rows["labels"] = f"{len(spec.labels)}: {shown}"
    if spec.pooling is not None:
        rows["embeddings"] = f"{spec.pooling} of the tokens" + (", scaled to length 1" if spec.normalize else "")
    if spec.markers:
        rows["markers"] = " ".join(spec.markers)
    if "max_abs_difference" in proof:
        rows["proof"] = (
            f"{proof['rows_compared']:.0f} rows, largest difference {proof['max_abs_difference']:.2g}, "
            f"output scale {proof['output_scale']:.2g}"
        )
    if "relative_error" in proof:
        rows["int8 on texts"] = (
            f"error {proof['relative_error']:.1%} of the outputs' size, best column agrees in "
            f"{proof['best_column_agreement']:.1%}, lowest cosine {proof['lowest_cosine']:.4f}"
        )
    if "max_abs_difference_alone_batched" in proof:
        rows["alone vs batched"] = _neighbours(proof["max_abs_difference_alone_batched"])
    return rows


def _neighbours(difference: float) -> str:
    return "bitwise equal" if difference == 0 else f"largest difference {difference:.2g}"
