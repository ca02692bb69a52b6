"""ONNX Runtime GenAI, in process. On CPUs it has no continuous batching: requests that wait when it is free form a batch, which
runs until its longest answer is done."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai
import peer
from workload import Item

BATCH = 8


def convert(checkpoint: Path, target: Path, precision: str) -> None:
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(target)]
    subprocess.run([*command, "-p", precision, "-e", "cpu"], check=True)


def measure(arguments: argparse.Namespace, items: list[Item]) -> tuple[peer.Record, dict[str, Any]]:
    config = genai.Config(str(arguments.model))
    config.overlay(f'{{"model": {{"decoder": {{"session_options": {{"intra_op_num_threads": {arguments.threads}}}}}}}}}')
    model = genai.Model(config)
    _serve(model, peer.warm_up_items(items))
    return _serve(model, items), {"version": genai.__version__, "batch": BATCH}


def _serve(model: Any, items: list[Item]) -> peer.Record:
    record, done = peer.Record(items), 0
    while done < len(items):
        arrived = [index for index in range(done, len(items)) if items[index].at <= record.now][:BATCH]
        if not arrived:
            time.sleep(peer.SLEEP_S)
            continue
        _generate(model, items, arrived, record)
        done += len(arrived)
    return record


def _generate(model: Any, items: list[Item], batch: list[int], record: peer.Record) -> None:
    width = max(len(items[index].prompt) for index in batch)
    longest = max(items[index].output_tokens for index in batch)
    prompts = np.zeros((len(batch), width), np.int32)  # padded on the left with the model's padding token, 0
    for row, index in zip(prompts, batch, strict=True):
        row[width - len(items[index].prompt) :] = items[index].prompt
    params = genai.GeneratorParams(model)
    params.set_search_options(batch_size=len(batch), max_length=width + longest, min_length=width + longest, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(prompts)
    for step in range(longest):
        generator.generate_next_token()
        for index in batch:
            if step < items[index].output_tokens:
                record.add(index, 1)


if __name__ == "__main__":
    peer.main(convert, measure, ("fp32", "int4"))
