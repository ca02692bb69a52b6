"""OpenVINO GenAI: its continuous batching pipeline, in process. At every precision its KV cache is int8, as by its defaults."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import peer
from workload import Item

CACHE_GB = 2
WEIGHTS = {"fp32": "fp32", "bf16": "fp16", "int8": "int8", "int4": "int4"}
COMPUTE = {"fp32": "f32", "bf16": "bf16", "int8": "f32", "int4": "f32"}


class Engine:
    def __init__(self, arguments: argparse.Namespace) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GB
        properties = {"INFERENCE_NUM_THREADS": arguments.threads, "INFERENCE_PRECISION_HINT": COMPUTE[arguments.precision]}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(arguments.model), scheduler, "CPU", properties)
        self._handles: dict[int, Any] = {}

    def add(self, index: int, item: Item) -> None:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = item.output_tokens
        config.ignore_eos, config.do_sample = True, False
        tokens = openvino.Tensor(np.array([item.prompt], np.int64))
        self._handles[index] = self._pipeline.add_request(index, tokens, config)

    def step(self) -> Iterable[tuple[int, int]]:
        self._pipeline.step()
        for index, handle in list(self._handles.items()):
            while handle.can_read():
                yield index, sum(len(output.generated_ids) for output in handle.read().values())
            if handle.get_status() == openvino_genai.GenerationStatus.FINISHED:
                del self._handles[index]

    @property
    def has_work(self) -> bool:
        return bool(self._pipeline.has_non_finished_requests())


def convert(checkpoint: Path, target: Path, precision: str) -> None:
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino", "-m", str(checkpoint)]
    subprocess.run(
        [*command, "--task", "text-generation-with-past", "--weight-format", WEIGHTS[precision], str(target)], check=True
    )


def measure(arguments: argparse.Namespace, items: list[Item]) -> tuple[peer.Record, dict[str, Any]]:
    engine = Engine(arguments)
    peer.drive(engine, peer.warm_up_items(items))
    return peer.drive(engine, items), {"version": openvino_genai.__version__}


if __name__ == "__main__":
    peer.main(convert, measure, tuple(WEIGHTS))
