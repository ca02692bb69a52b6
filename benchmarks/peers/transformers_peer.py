"""transformers' own continuous batching, in process."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import peer
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from workload import Item

PAGES = ContinuousBatchingConfig(page_size=32, num_blocks=1024, max_batch_tokens=512)
"""Left to itself it takes nine tenths of the memory, and builds a mask of each step's tokens times the whole cache."""


def convert(checkpoint: Path, target: Path, precision: str) -> None:
    target.symlink_to(checkpoint.resolve(), target_is_directory=True)


def measure(arguments: argparse.Namespace, items: list[Item]) -> tuple[peer.Record, dict[str, Any]]:
    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.precision], attn_implementation="sdpa"
    )
    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=peer.MAX_MODEL_LEN)
    model.generation_config = config
    manager = model.init_continuous_batching(config, PAGES)
    manager.start()
    try:
        _serve(manager, peer.warm_up_items(items), "warm-up")
        return _serve(manager, items, "request"), {"version": transformers.__version__}
    finally:
        manager.stop(block=True)


def _serve(manager: Any, items: list[Item], name: str) -> peer.Record:
    record, seen, handed_in, ended = peer.Record(items), [0] * len(items), 0, 0
    while ended < len(items):
        while handed_in < len(items) and items[handed_in].at <= record.now:
            item = items[handed_in]
            manager.add_request(item.prompt, request_id=f"{name}-{handed_in}", max_new_tokens=item.output_tokens, streaming=True)
            handed_in += 1
        result = manager.get_result(timeout=0.01)
        if result is None:
            if not manager.is_running():
                raise RuntimeError("its thread has ended")
            continue
        index = int(result.request_id.rpartition("-")[2])
        record.add(index, len(result.generated_tokens) - seen[index])
        seen[index] = len(result.generated_tokens)
        ended += bool(result.is_finished())
        time.sleep(0)
    return record


if __name__ == "__main__":
    peer.main(convert, measure, ("fp32", "bf16"))
