"""Loading, refusing to load, unloading and loading again, on a Triton of its own in the mode "explicit"."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from fastserve.config import EngineConfig
from fastserve.export.options import ExportOptions
from fastserve.export.text_generation import export_model
from fastserve.tools.launcher import LaunchOptions, TritonLauncher
from tests.e2e.explicit_repository import BARE, GREEDY, Repository
from tests.e2e.metrics_page import read_metric, wait_until
from tests.e2e.test_contract_errors import Neighbour
from tests.e2e.test_contract_wire import grpc_message, open_channel, question, rows_of, start_call

BAD_PARAMETERS = {
    "policy": ("lifo", "'lifo'"),
    "priority_inner_policy": ("auto", "'auto'"),
    "mlfq_starvation_ms": ("0", "0"),
    "max_num_seqs": ("-1", "-1"),
    "max_batched_tokens": ("many", "'many'"),
    "max_queue_size": ("0", "0"),
    "max_queue_size_per_tenant": ("-1", "-1"),
    "max_model_len": ("-1", "-1"),
    "block_size": ("24", "24"),
    "kv_cache_bytes": ("1.5", "'1.5'"),
    "kv_cache_memory_fraction": ("nan", "nan"),
    "kv_cache_dtype": ("int3", "'int3'"),
    "prefix_cache": ("true", "'true'"),
    "preemption": ("swap", "'swap'"),
    "swap_space_bytes": ("-1", "-1"),
    "swap_file_bytes": ("1.5", "'1.5'"),
    "max_stream_delay_ms": ("-1", "-1"),
    "swap_directory": ("cache/swap", "'cache/swap'"),
    "num_threads": ("-1", "-1"),
    "spinning": ("maybe", "'maybe'"),
    "share_weights": ("yes", "'yes'"),
    "default_deadline_ms": ("1e99", "'1e99'"),
}
"""For each key of the configuration a value that is not allowed, and how the message shows it."""
CONTRADICTIONS = {
    "fewer tokens than sequences": (
        {"max_batched_tokens": "8", "max_num_seqs": "9"},
        "max_batched_tokens: got 8",
        "max_num_seqs (9)",
    ),
    "longer than the model": ({"max_model_len": "16385"}, "max_model_len: got 16385", "to 16384"),
    "no room for a block": ({"kv_cache_bytes": "100"}, "kv_cache_bytes: got 100", "at least 8192 (one block of 16 tokens)"),
    "unknown key": ({"max_num_seq": "5"}, "max_num_seq: unknown key in config.pbtxt parameters", "max_num_seqs"),
}


@pytest.fixture(scope="module")
def repository(sources, tmp_path_factory):
    """With one model loaded, ``good``, whose config.pbtxt is the one that export wrote."""
    exports, folder = tmp_path_factory.mktemp("export"), tmp_path_factory.mktemp("explicit")
    export_model(str(sources["llama-long"]), ExportOptions(output=exports, name="llama-long"))
    shutil.copytree(exports / "llama-long", folder / "good")
    options = LaunchOptions(ready_timeout_s=300.0, model_control_mode="explicit", load_models=("good",))
    with TritonLauncher(folder, options) as launcher:
        yield Repository(launcher, folder, exports / "llama-long")


@pytest.fixture(scope="module")
def expected(repository):
    return repository.answer("good")


def assert_refused(repository, name, *parts):
    """It is not loaded and Triton says why; nothing of it is left; the other model still serves."""
    repository.refuse(name, *parts)
    assert len(repository.answer("good")) == 5


def test_a_config_that_names_only_the_backend_is_enough(repository, expected):
    repository.add("bare")
    assert repository.load("bare").status_code == 200
    assert repository.answer("bare") == expected

    completed, exported = (repository.http("GET", f"models/{name}/config").json() for name in ("bare", "good"))
    for key in ("input", "output"):
        assert sorted(map(json.dumps, completed[key])) == sorted(map(json.dumps, exported[key]))
    assert completed["max_batch_size"] == 0 and completed["model_transaction_policy"] == {"decoupled": True}
    repository.unload("bare")


def test_every_key_of_the_configuration_has_a_bad_value_here():
    assert set(BAD_PARAMETERS) == {field.name for field in dataclasses.fields(EngineConfig)}


@pytest.mark.parametrize("key", BAD_PARAMETERS)
def test_a_parameter_that_is_not_allowed_is_named_with_its_value_and_what_is(repository, key):
    value, shown = BAD_PARAMETERS[key]
    repository.add(f"bad-{key}", {key: value})
    assert_refused(repository, f"bad-{key}", f"{key}: got {shown}, allowed: ")


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_parameter_that_contradicts_another_or_the_model_is_named_with_both(repository, case):
    parameters, *parts = CONTRADICTIONS[case]
    name = case.replace(" ", "-")
    repository.add(name, parameters)
    assert_refused(repository, name, *parts, "allowed: ")


def test_a_config_that_contradicts_the_contract_is_refused_in_tritons_words(repository):
    repository.add("whole", config=BARE + "model_transaction_policy { decoupled: false }")
    assert_refused(repository, "whole", "decoupled property")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def replace(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


DAMAGE = {
    "no-manifest": (
        lambda folder: (folder / "1" / "manifest.json").unlink(),
        ("manifest.json: cannot be read", "fastserve export"),
    ),
    "manifest-not-json": (lambda folder: (folder / "1" / "manifest.json").write_text("{"), ("manifest.json: not JSON",)),
    "wrong-manifest-version": (
        lambda folder: replace(folder / "1" / "manifest.json", '"manifest_version": 1', '"manifest_version": 99'),
        ("manifest_version: got 99, allowed: 1", "export the model again"),
    ),
    "no-weights": (lambda folder: (folder / "1" / "model.onnx.data").unlink(), ("model.onnx.data", "but missing")),
    "truncated-weights": (
        lambda folder: truncate(folder / "1" / "model.onnx.data"),
        ("model.onnx.data", "the copy is incomplete"),
    ),
    "truncated-tokenizer": (
        lambda folder: truncate(folder / "1" / "tokenizer.json"),
        ("tokenizer.json", "the copy is incomplete"),
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_is_refused_with_the_file_and_the_remedy(repository, name):
    damage, parts = DAMAGE[name]
    damage(repository.add(name))
    assert_refused(repository, name, *parts)


def test_an_input_declared_with_another_type_is_refused_naming_both(repository):
    config = BARE + 'input [ { name: "text_input" data_type: TYPE_INT32 dims: [ 1 ] } ]\n'
    repository.add("redeclared", config=config)
    assert_refused(repository, "redeclared", "input text_input: got TYPE_INT32 [1] in config.pbtxt, allowed: TYPE_STRING [1]")


def test_a_model_that_was_mended_loads(repository, expected):
    repository.add("mended", {"max_num_seqs": "-1"})
    assert_refused(repository, "mended", "max_num_seqs: got -1")
    repository.configure("mended", {"max_num_seqs": "4"})
    assert repository.load("mended").status_code == 200
    assert repository.answer("mended") == expected
    repository.unload("mended")


def test_a_model_is_not_ready_before_it_is_warm_and_the_first_request_after_is_served(repository, expected):
    repository.add("slow", {"max_batched_tokens": "2048"})
    asked = service_pb2.ModelReadyRequest(name="slow")  # over gRPC: an HTTP look may wait for the thread that loads
    with open_channel(repository.launcher) as channel, concurrent.futures.ThreadPoolExecutor(1) as pool:
        stub, looks = service_pb2_grpc.GRPCInferenceServiceStub(channel), 0
        loading = pool.submit(repository.load, "slow")
        while not stub.ModelReady(asked).ready:
            looks += 1
            assert not loading.done() or loading.result().status_code == 200, loading.result().text
        assert repository.answer("slow") == expected and looks > 0
    assert read_metric(repository.launcher, "vllm:prompt_tokens_total", "slow") <= 5, "the warm-up is not a client's"
    repository.unload("slow")


def stream_of(name, tokens):
    """A request that goes on for a while."""
    parameters = {"temperature": 0, "ignore_eos": True, "max_tokens": tokens}
    return grpc_message(
        name, question(parameters, text_input="hello", stream=True, returns=("finish_reason", "num_output_tokens"))
    )


def test_an_unload_lets_a_running_stream_finish_and_then_nothing_is_left(repository, expected):
    """Triton 2.51 calls ``finalize`` only when no request is in flight."""
    name = "drained"
    repository.add(name)
    assert repository.load(name).status_code == 200
    (stub,) = repository.stubs(name)
    with open_channel(repository.launcher) as channel:
        rows = rows_of(start_call(channel, stream_of(name, 12_000)))
        first = next(rows)
        repository.unload(name)
        assert repository.state(name)[0] == "UNLOADING" and not repository.is_ready(name)
        rest = list(rows)
    tokens = sum(row.values["num_output_tokens"][0] for row in [first, *rest])
    assert tokens == 12_000 and rest[-1].values["finish_reason"] == ["length"] and rest[-1].final
    wait_until(lambda: not stub.is_running() and repository.state(name) == ("UNAVAILABLE", "unloaded"))
    assert repository.stubs(name) == []
    assert repository.load(name).status_code == 200
    assert repository.answer(name) == expected
    repository.unload(name)


def test_what_a_model_learned_of_its_steps_is_kept_when_it_is_unloaded(repository):
    cache = Path(os.environ["FASTSERVE_CACHE"])
    name, before = "learning", set(cache.glob("costs-*.json"))
    repository.add(name, {"max_num_seqs": "13"})
    assert repository.load(name).status_code == 200
    (file,) = set(cache.glob("costs-*.json")) - before
    profiled = json.loads(file.read_text())
    with open_channel(repository.launcher) as channel:
        assert len(list(rows_of(start_call(channel, stream_of(name, 200))))) > 0
    repository.unload(name)
    wait_until(lambda: repository.stubs(name) == [])
    kept = json.loads(file.read_text())
    assert kept != profiled and kept["profiled"] == profiled["profiled"]
    assert kept["circumstances"] == profiled["circumstances"] and kept.keys() == profiled.keys()


def test_a_model_that_is_being_unloaded_takes_no_new_requests(repository):
    repository.add("leaving")
    assert repository.load("leaving").status_code == 200
    with open_channel(repository.launcher) as channel:
        call = start_call(channel, stream_of("leaving", 15_000))
        next(call)
        repository.unload("leaving")
        answer = repository.http("POST", "models/leaving/generate", {"text_input": "a"})
        assert answer.status_code == 404 and "'leaving' has no available versions" in answer.json()["error"]
        call.cancel()
        wait_until(lambda: repository.stubs("leaving") == [])  # a cancel ends the wait for the stream


def test_a_reload_takes_the_new_configuration_and_a_bad_one_leaves_the_old_in_place(repository, expected):
    repository.add("changing")
    assert repository.load("changing").status_code == 200
    repository.configure("changing", {"max_model_len": "32"})
    assert repository.load("changing").status_code == 200
    answer = repository.http("POST", "models/changing/generate", question(GREEDY, input_ids=[5] * 32))
    assert answer.status_code == 400 and "at most 31" in answer.json()["error"]
    repository.configure("changing", {"max_model_len": "x"})
    assert repository.load("changing").status_code == 400
    assert repository.is_ready("changing") and repository.answer("changing") == expected
    repository.unload("changing")


def test_loading_failing_and_unloading_leave_a_stream_of_another_model_untouched(repository):
    alone = Neighbour(repository.launcher, "good", 15_000).run()
    repository.add("leaves")
    assert repository.load("leaves").status_code == 200
    repository.add("fails", {"max_num_seqs": "-1"})

    def come_and_go():
        assert repository.load("fails").status_code == 400
        repository.unload("leaves")

    beside = Neighbour(repository.launcher, "good", 15_000).run_beside(come_and_go)
    assert (beside.ids, beside.text) == (alone.ids, alone.text)
