"""FastServe's engine in process, without Triton, with the settings that the export wrote into config.pbtxt."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peer
from workload import Item

import fastserve
from fastserve.config import EngineConfig, parse_config
from fastserve.core.events import TokenEvent
from fastserve.core.request import Request, SamplingParams
from fastserve.engine.loader import load_engine
from fastserve.export.options import ExportOptions
from fastserve.export.text_generation import export_model
from fastserve.manifest import ModelManifest
from fastserve.tools.model_config import parameters_of_version

NAME = "peer"


class Engine:
    def __init__(self, arguments: argparse.Namespace) -> None:
        directory = arguments.model / NAME / "1"
        own = {"num_threads": str(arguments.threads), "max_model_len": str(peer.MAX_MODEL_LEN)}
        config = parse_config(EngineConfig, parameters_of_version(directory) | own)
        self._engine = load_engine(directory, ModelManifest.load(directory), config, time.monotonic)

    def add(self, index: int, item: Item) -> None:
        params = SamplingParams(max_tokens=item.output_tokens, temperature=0.0)
        if failed := self._engine.submit(Request(index, tuple(item.prompt), params)):
            raise RuntimeError(failed)

    def step(self) -> Iterable[tuple[int, int]]:
        for event in self._engine.step():
            if not isinstance(event, TokenEvent):
                raise RuntimeError(event)
            yield event.request_id, 1

    @property
    def has_work(self) -> bool:
        return self._engine.has_work


def convert(checkpoint: Path, target: Path, precision: str) -> None:
    export_model(str(checkpoint), ExportOptions(output=target, name=NAME, dtype=precision))


def measure(arguments: argparse.Namespace, items: list[Item]) -> tuple[peer.Record, dict[str, Any]]:
    engine = Engine(arguments)
    peer.drive(engine, peer.warm_up_items(items))
    return peer.drive(engine, items), {"version": fastserve.__version__}


if __name__ == "__main__":
    peer.main(convert, measure, ("fp32", "int8", "int4"))
