"""FastServe in a real Triton, asked over gRPC by a client that reads every token as it comes."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import fastserve_peer
import grpc.aio
import peer
import psutil
from tritonclient.grpc import service_pb2_grpc
from workload import Item

import fastserve
from fastserve.tools.grpc_client import infer_message, outputs_of
from fastserve.tools.launcher import TritonLauncher


def measure(arguments: argparse.Namespace, items: list[Item], **asked: int) -> tuple[peer.Record, dict[str, Any]]:
    """``asked``: sampling parameters beyond what the workload needs."""
    with TritonLauncher(arguments.model) as triton:
        asyncio.run(serve(triton.grpc_url, peer.warm_up_items(items), **asked))
        record = asyncio.run(serve(triton.grpc_url, items, **asked))
        peak = _peak_bytes(triton.pid)
    return record, {"version": fastserve.__version__, "peak_bytes": peak}


async def serve(url: str, items: list[Item], **asked: int) -> peer.Record:
    """A stream for each request, all on one channel."""
    async with grpc.aio.insecure_channel(url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        record = peer.Record(items)
        sampling = {"temperature": 0, "ignore_eos": True, **asked}
        await asyncio.gather(*(_ask(stub, index, item, sampling, record) for index, item in enumerate(items)))
        return record


async def _ask(stub: Any, index: int, item: Item, sampling: dict[str, Any], record: peer.Record) -> None:
    await asyncio.sleep(max(0.0, item.at - record.now))
    parameters = json.dumps({"max_tokens": item.output_tokens, **sampling})
    tensors: list[tuple[str, str, list[Any]]] = [
        ("input_ids", "INT64", item.prompt),
        ("stream", "BOOL", [True]),
        ("return_num_output_tokens", "BOOL", [True]),
        ("sampling_parameters", "BYTES", [parameters]),
    ]
    message = infer_message(fastserve_peer.NAME, tensors, batch_dimension=False)
    async for answer in stub.ModelStreamInfer(iter((message,))):
        if answer.error_message:
            raise RuntimeError(answer.error_message)
        if answer.infer_response.outputs:
            record.add(index, sum(outputs_of(answer.infer_response)["num_output_tokens"]))


def _peak_bytes(pid: int | None) -> int:
    """Of the server and the process of its model, each at its own largest."""
    server = psutil.Process(pid)
    return sum(_high_water(process.pid) for process in (server, *server.children(recursive=True)))


def _high_water(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    peer.main(fastserve_peer.convert, measure, ("fp32", "int8", "int4"))
