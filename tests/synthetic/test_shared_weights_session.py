"""Shared weights with real sessions: the same answers, and one copy in memory."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import re
import resource
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastserve.manifest import GraphSpec, hash_file
from fastserve.worker.session import SessionSettings, create_session, open_session
from fastserve.worker.shared_weights import CACHE_VARIABLE, WEIGHTS_FILE
from tests.doubles import make_manifest

SIZE, LAYERS = 1024, 16
WEIGHT_BYTES = LAYERS * SIZE * SIZE * 4


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A version folder with a graph of large matrix products, and a cache folder of its own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    directory = tmp_path / "model"
    directory.mkdir()
    generator = np.random.default_rng(0)
    names = [f"h{index}" for index in range(LAYERS + 1)]
    weights = [
        numpy_helper.from_array((generator.standard_normal((SIZE, SIZE)) / 32).astype(np.float32), f"w{i}") for i in range(LAYERS)
    ]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(LAYERS)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", SIZE]) for name in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "products", values[:1], values[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(proto, str(directory / "model.onnx"), save_as_external_data=True, location="model.onnx.data")
    return directory, make_manifest(files={file.name: hash_file(file) for file in directory.iterdir()})


def test_a_session_with_shared_weights_gives_the_same_bits(model):
    directory, manifest = model
    rows = np.random.default_rng(1).standard_normal((7, SIZE)).astype(np.float32)
    (wanted,) = create_session(directory / "model.onnx", SessionSettings(num_threads=1)).run(None, {"h0": rows})
    for _ in range(2):  # made, then found
        session = open_session(directory, manifest, "model.onnx", SessionSettings(1, share_weights=True))
        np.testing.assert_array_equal(session.run(None, {"h0": rows})[0], wanted)
    assert sorted(file.name for file in directory.iterdir()) == ["model.onnx", "model.onnx.data"]


@pytest.mark.parametrize(("reordered", "made"), [(None, True), (WEIGHT_BYTES, True), (WEIGHT_BYTES // 200, False)])
def test_a_copy_is_made_only_of_a_model_whose_weights_would_be_copied(model, tmp_path, caplog, reordered, made):
    directory, manifest = model
    graph = GraphSpec({"none": "model.onnx"}, (), (), reordered)
    manifest = dataclasses.replace(manifest, graphs={"encoder": graph})
    rows = np.ones((1, SIZE), np.float32)
    with caplog.at_level(logging.INFO):
        session = open_session(directory, manifest, "model.onnx", SessionSettings(1, share_weights=True))
    assert session.run(None, {"h0": rows})[0].shape == (1, SIZE)
    assert (tmp_path / "cache").exists() == made
    assert ("0.3 of 67.1 MB are not mapped as they lie in the file" in caplog.text) == (not made)


@pytest.fixture
def small_files(model):
    """No file may be larger than the beginning of the weights, as where a quota is used up."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (WEIGHT_BYTES // 8, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_a_shared_copy_that_cannot_be_written_is_no_reason_not_to_serve(model, caplog):
    directory, manifest = model
    session = open_session(directory, manifest, "model.onnx", SessionSettings(1, share_weights=True))
    assert session.run(None, {"h0": np.ones((1, SIZE), np.float32)})[0].shape == (1, SIZE)
    assert "weights are not shared" in caplog.text


def test_a_damaged_shared_copy_is_no_reason_not_to_serve(model, caplog):
    directory, manifest = model
    open_session(directory, manifest, "model.onnx", SessionSettings(1, share_weights=True))
    (weights,) = (directory.parent / "cache").glob(f"*/{WEIGHTS_FILE}")
    weights.write_bytes(b"")
    session = open_session(directory, manifest, "model.onnx", SessionSettings(1, share_weights=True))
    assert session.run(None, {"h0": np.ones((1, SIZE), np.float32)})[0].shape == (1, SIZE)
    assert "weights are not shared" in caplog.text


def private_bytes(directory, manifest, share_weights, ready, gate, answers):
    """In a process of its own: load, run, and say how much memory nobody else has, while the others have theirs."""
    session = open_session(directory, manifest, "model.onnx", SessionSettings(1, share_weights=share_weights))
    session.run(None, {"h0": np.ones((4, SIZE), np.float32)})
    ready.wait()
    found = re.findall(r"^Private_\w+:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    gate.wait()
    answers.put(sum(map(int, found)) * 1024)


def private_bytes_of_two(directory, manifest, share_weights):
    context = multiprocessing.get_context("spawn")
    ready, gate, answers = context.Barrier(2), context.Barrier(2), context.Queue()
    arguments = (directory, manifest, share_weights, ready, gate, answers)
    processes = [context.Process(target=private_bytes, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    return min(found)


def test_two_processes_hold_the_weights_once(model):
    directory, manifest = model
    open_session(directory, manifest, "model.onnx", SessionSettings(share_weights=True))  # made before anybody is measured
    apart, shared = (private_bytes_of_two(directory, manifest, share_weights) for share_weights in (False, True))
    assert shared < apart - 0.8 * WEIGHT_BYTES
