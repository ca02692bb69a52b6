"""CTranslate2, in process. It has no continuous batching: requests that wait when it is free form a batch, in which the tokens of
a request stop coming at its own length."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import ctranslate2
import peer
from workload import Item

BATCH = 16


def convert(checkpoint: Path, target: Path, precision: str) -> None:
    quantization = {"fp32": "float32", "int8": "int8"}[precision]
    ctranslate2.converters.TransformersConverter(str(checkpoint)).convert(str(target), quantization=quantization)


def measure(arguments: argparse.Namespace, items: list[Item]) -> tuple[peer.Record, dict[str, Any]]:
    compute = {"fp32": "float32", "int8": "int8"}[arguments.precision]
    generator = ctranslate2.Generator(str(arguments.model), compute_type=compute, intra_threads=arguments.threads)
    vocabulary = _vocabulary(arguments.model)
    _serve(generator, vocabulary, peer.warm_up_items(items))
    return _serve(generator, vocabulary, items), {"version": ctranslate2.__version__, "batch": BATCH}


def _vocabulary(model: Path) -> list[str]:
    """Token strings by id: prompts are given as strings."""
    import json

    return list(json.loads((model / "vocabulary.json").read_text(encoding="utf-8")))


def _serve(generator: Any, vocabulary: list[str], items: list[Item]) -> peer.Record:
    record, done = peer.Record(items), 0
    while done < len(items):
        arrived = [index for index in range(done, len(items)) if items[index].at <= record.now][:BATCH]
        if not arrived:
            time.sleep(peer.SLEEP_S)
            continue
        _generate(generator, vocabulary, items, arrived, record)
        done += len(arrived)
    return record


def _generate(generator: Any, vocabulary: list[str], items: list[Item], batch: list[int], record: peer.Record) -> None:
    missing = {index: items[index].output_tokens for index in batch}

    def take(result: Any) -> bool:
        """Whether this request has all its tokens."""
        index = batch[result.batch_id]
        record.add(index, 1)
        missing[index] -= 1
        return missing[index] == 0

    longest = max(items[index].output_tokens for index in batch)
    generator.generate_batch(
        [[vocabulary[token] for token in items[index].prompt] for index in batch],
        max_length=longest,
        min_length=longest,
        include_prompt_in_result=False,
        callback=take,
    )


if __name__ == "__main__":
    peer.main(convert, measure, ("fp32", "int8"))
