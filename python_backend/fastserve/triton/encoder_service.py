"""Serves every task of encoders."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fastserve.config import EncoderConfig, parse_config
from fastserve.core.encoding import EncodingRequest
from fastserve.engine.encoder_loader import load_encoder_engine, load_encoding_task
from fastserve.triton.encoder_protocol import parse_encoding
from fastserve.triton.encoder_stream import EncodingResponse, LongEncodingResponse
from fastserve.triton.engine_service import EngineService, count_instances, load_manifest
from fastserve.triton.request_reader import Received


class EncoderService(EngineService[EncodingRequest]):
    """One instance of an encoder."""

    def __init__(self, args: dict[str, str], parameters: Mapping[str, str]) -> None:
        config = parse_config(EncoderConfig, parameters)
        directory, manifest = load_manifest(args, parameters)
        engine = load_encoder_engine(directory, manifest, config, time.monotonic, num_instances=count_instances(args))
        self._task = load_encoding_task(directory, manifest, config)
        super().__init__(args, engine, max_queue_size=config.max_queue_size)

    def read(self, received: Received, request_id: int) -> tuple[EncodingResponse, EncodingRequest]:
        item = parse_encoding(received.tensors, received.parameters)
        prepared = self._task.prepare(item, request_id, received.arrived)
        if received.is_long:
            return LongEncodingResponse(received, prepared, self.long_texts, self.outbox), prepared.request
        return EncodingResponse(received, prepared), prepared.request
