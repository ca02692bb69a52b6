"""A closed loop over gRPC: ``concurrency`` clients that each send their next request when the last is answered.

One asyncio thread and ready-made messages, so that the client takes as little of the measured machine as Python can.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Sequence

import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc


@dataclasses.dataclass(frozen=True)
class Load:
    """What one run of the loop saw. ``latencies``: seconds, one for each answered request."""

    seconds: float
    latencies: list[float]

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile_ms(self, share: float) -> float:
        return float(np.percentile(self.latencies, share)) * 1000


def text_message(model: str, text: str) -> service_pb2.ModelInferRequest:
    """One text for an encoder model, answered with ``result`` alone."""
    message = service_pb2.ModelInferRequest(model_name=model)
    tensor = message.inputs.add(name="text_input", datatype="BYTES", shape=[1, 1])
    tensor.contents.bytes_contents.append(text.encode())
    message.outputs.add(name="result")
    return message


def run_closed_loop(url: str, messages: Sequence[service_pb2.ModelInferRequest], concurrency: int, seconds: float) -> Load:
    """Send ``messages`` round and round for ``seconds``; requests that are under way then are waited for and counted."""
    return asyncio.run(_run(url, messages, concurrency, seconds))


async def _run(url: str, messages: Sequence[service_pb2.ModelInferRequest], concurrency: int, seconds: float) -> Load:
    latencies: list[float] = []
    following = itertools.cycle(messages)
    async with grpc.aio.insecure_channel(url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        start = time.perf_counter()

        async def client() -> None:
            while (sent := time.perf_counter()) < start + seconds:
                await stub.ModelInfer(next(following))
                latencies.append(time.perf_counter() - sent)

        await asyncio.gather(*(client() for _ in range(concurrency)))
        return Load(time.perf_counter() - start, latencies)
