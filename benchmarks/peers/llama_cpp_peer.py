"""llama.cpp's server with continuous batching, over HTTP on this machine."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import peer
from workload import Item

SLOTS = 16
GGUF_TYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16", "int8": "Q8_0", "int4": "Q4_0"}
START_S = 120


def convert(checkpoint: Path, target: Path, precision: str) -> None:
    """``checkpoint``: a folder with one .gguf file, which is read back to fp32 before it is quantised anew."""
    (source,) = checkpoint.glob("*.gguf")
    target.mkdir()
    command = [os.environ["LLAMA_QUANTIZE"], "--allow-requantize", str(source), str(target / "model.gguf"), GGUF_TYPES[precision]]
    subprocess.run(command, check=True)


def measure(arguments: argparse.Namespace, items: list[Item]) -> tuple[peer.Record, dict[str, Any]]:
    port, slots = _free_port(), min(SLOTS, len(items))
    command = [os.environ["LLAMA_SERVER"], "-m", str(arguments.model / "model.gguf"), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-t", str(arguments.threads), "-tb", str(arguments.threads)]
    command += ["-np", str(slots), "-c", str(slots * peer.MAX_MODEL_LEN)]
    server = subprocess.Popen([*command, "--no-webui"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port, server)
        _serve(port, peer.warm_up_items(items))
        record = _serve(port, items)
    finally:
        server.terminate()
        server.wait()
    return record, {"version": _version(), "slots": slots}


def _version() -> str:
    said = subprocess.run([os.environ["LLAMA_SERVER"], "--version"], capture_output=True, text=True, check=False)
    return (said.stdout + said.stderr).strip().splitlines()[0]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise RuntimeError("the server does not answer")


def _serve(port: int, items: list[Item]) -> peer.Record:
    """A thread and a connection for each request."""
    record = peer.Record(items)
    threads = [threading.Thread(target=_ask, args=(port, index, item, record)) for index, item in enumerate(items)]
    for thread, item in zip(threads, items, strict=True):
        time.sleep(max(0.0, item.at - record.now))
        thread.start()
    for thread in threads:
        thread.join()
    return record


def _ask(port: int, index: int, item: Item, record: peer.Record) -> None:
    asked = {"prompt": item.prompt, "n_predict": item.output_tokens, "ignore_eos": True, "temperature": 0, "stream": True}
    body = json.dumps({**asked, "cache_prompt": False, "return_tokens": True})
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
    for line in connection.getresponse():
        if line.startswith(b"data: {"):
            event = json.loads(line[len(b"data: ") :])
            record.add(index, len(event.get("tokens", ())) if not event.get("stop") else 0)


if __name__ == "__main__":
    peer.main(convert, measure, tuple(GGUF_TYPES))
