"""Serves text generation."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from fastserve.config import EngineConfig, parse_config
from fastserve.core.request import Request
from fastserve.engine.instances import Instance
from fastserve.engine.loader import load_engine, load_text_generation
from fastserve.triton.batched_channel import BatchedChannel
from fastserve.triton.engine_service import EngineService, count_instances, load_manifest
from fastserve.triton.generation_stream import GenerationResponse
from fastserve.triton.protocol import parse_generation
from fastserve.triton.request_reader import Received


class GenerationService(EngineService[Request]):
    """One instance of a decoder."""

    def __init__(self, args: dict[str, str], parameters: Mapping[str, str]) -> None:
        config = parse_config(EngineConfig, parameters)
        directory, manifest = load_manifest(args, parameters)
        instance = Instance(count_instances(args), device_number=int(args["model_instance_device_id"]))
        engine = load_engine(directory, manifest, config, time.monotonic, instance=instance)
        self._batched = int(json.loads(args["model_config"]).get("max_batch_size", 0)) > 0
        self._task = load_text_generation(directory, manifest, config)
        self._keep_costs = engine.keep_costs
        super().__init__(args, engine, max_queue_size=config.max_queue_size, max_stream_delay_ms=config.max_stream_delay_ms)

    def stop(self) -> None:
        super().stop()
        self._keep_costs()  # the engine's thread has ended

    def read(self, received: Received, request_id: int) -> tuple[GenerationResponse, Request]:
        item, flags = parse_generation(received.tensors, received.parameters)
        prepared = self._task.prepare(item, request_id, received.arrived)
        channel = BatchedChannel(received.channel) if self._batched else received.channel
        response = GenerationResponse(channel, prepared, flags, self._task.tokenizer, withdraw=self._engine.abort)
        return response, prepared.request
