"""vLLM's CPU build, in process: its engine, step by step."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peer
from workload import Item

CACHE_GB = "2"


class Engine:
    def __init__(self, arguments: argparse.Namespace) -> None:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = CACHE_GB
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{arguments.threads - 1}"
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process, as those of the others
        from vllm import EngineArgs, LLMEngine, SamplingParams

        self._params = SamplingParams
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(arguments.model),
                dtype={"fp32": "float32", "bf16": "bfloat16"}[arguments.precision],
                max_model_len=peer.MAX_MODEL_LEN,
            )
        )
        self._seen: dict[int, int] = {}

    def add(self, index: int, item: Item) -> None:
        params = self._params(
            max_tokens=item.output_tokens, min_tokens=item.output_tokens, ignore_eos=True, temperature=0.0, detokenize=False
        )
        self._seen[index] = 0
        self._engine.add_request(str(index), {"prompt_token_ids": item.prompt}, params)

    def step(self) -> Iterable[tuple[int, int]]:
        for output in self._engine.step():
            index, total = int(output.request_id), len(output.outputs[0].token_ids)
            yield index, total - self._seen[index]
            self._seen[index] = total

    @property
    def has_work(self) -> bool:
        return bool(self._engine.has_unfinished_requests())


def convert(checkpoint: Path, target: Path, precision: str) -> None:
    target.symlink_to(checkpoint.resolve(), target_is_directory=True)


def measure(arguments: argparse.Namespace, items: list[Item]) -> tuple[peer.Record, dict[str, Any]]:
    import vllm

    engine = Engine(arguments)
    peer.drive(engine, peer.warm_up_items(items))
    return peer.drive(engine, items), {"version": vllm.__version__}


if __name__ == "__main__":
    peer.main(convert, measure, ("fp32", "bf16"))
