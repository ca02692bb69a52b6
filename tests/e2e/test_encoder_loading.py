"""Loading, refusing to load, unloading and loading encoders again, on a Triton of its own in the mode "explicit"."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from fastserve.config import EncoderConfig
from fastserve.tools.launcher import LaunchOptions, TritonLauncher
from tests.e2e.encoder_wire import infer_grpc, infer_message
from tests.e2e.explicit_repository import BARE, Repository
from tests.e2e.metrics_page import wait_until
from tests.e2e.served_encoders import SLOW
from tests.e2e.test_contract_wire import Refused, open_channel
from tests.e2e.test_encoder_errors import LONG, Pending

TASK = {"task": "text-classification"}
ROWS = {"text_input": ["a good film", "london is a city by the river " * 40, "b"]}
BAD_PARAMETERS = {
    "max_num_seqs": ("0", "0"),
    "max_batched_tokens": ("many", "'many'"),
    "max_queue_size": ("0", "0"),
    "num_threads": ("-1", "-1"),
    "share_weights": ("maybe", "'maybe'"),
    "default_deadline_ms": ("1e99", "'1e99'"),
}
"""For each key of the configuration a value that is not allowed, and how the message shows it."""


@pytest.fixture(scope="module")
def repository(encoder_repository, tmp_path_factory):
    """With one model loaded, ``good``, whose config.pbtxt is the one that export wrote."""
    folder = tmp_path_factory.mktemp("explicit_encoders")
    shutil.copytree(encoder_repository / "classify", folder / "good")
    options = LaunchOptions(ready_timeout_s=300.0, model_control_mode="explicit", load_models=("good",))
    with TritonLauncher(folder, options) as launcher:
        yield Repository(launcher, folder, encoder_repository / "classify")


@pytest.fixture(scope="module")
def expected(repository):
    return infer_grpc(repository.launcher, "good", ROWS)


def test_a_config_that_names_only_backend_and_task_is_enough(repository, expected):
    repository.add("bare", TASK)
    assert repository.load("bare").status_code == 200
    assert infer_grpc(repository.launcher, "bare", ROWS) == expected
    bare, exported = (repository.http("GET", f"models/{name}/config").json() for name in ("bare", "good"))
    for key in ("input", "output", "max_batch_size", "dynamic_batching"):
        assert bare[key] == exported[key], key
    repository.unload("bare")


@pytest.mark.parametrize(
    ("parameters", "parts"),
    [
        ({}, ("task: got 'text-generation' in config.pbtxt, allowed: 'text-classification'",)),
        ({"task": "reranking"}, ("task: got 'reranking' in config.pbtxt, allowed: 'text-classification'",)),
        ({"task": "ner"}, ("task: got 'ner' in config.pbtxt, allowed: text-generation, ", "token-classification")),
        (TASK | {"block_size": "16"}, ("block_size: unknown key in config.pbtxt parameters, allowed: ", "max_batched_tokens")),
    ],
    ids=["no task", "another task", "an unknown task", "a decoder's setting"],
)
def test_a_configuration_that_is_not_this_models_is_refused(repository, request, parameters, parts):
    name = request.node.callspec.id.replace(" ", "-").replace("'", "")
    repository.add(name, parameters)
    repository.refuse(name, *parts)


def test_every_key_of_the_configuration_has_a_bad_value_here():
    assert set(BAD_PARAMETERS) == {field.name for field in dataclasses.fields(EncoderConfig)}


@pytest.mark.parametrize("key", BAD_PARAMETERS)
def test_a_parameter_that_is_not_allowed_is_named_with_its_value_and_what_is(repository, key):
    value, shown = BAD_PARAMETERS[key]
    repository.add(f"bad-{key}", TASK | {key: value})
    repository.refuse(f"bad-{key}", f"{key}: got {shown}, allowed: ")


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("model_transaction_policy { decoupled: true }", "model_transaction_policy: got decoupled: true"),
        ('input [ { name: "text_input" data_type: TYPE_STRING dims: [ -1 ] } ]', "allowed: TYPE_STRING [1]"),
        ('output [ { name: "embedding" data_type: TYPE_FP32 dims: [ -1 ] } ]', "output embedding: unknown"),
    ],
    ids=["decoupled", "other-dims", "other-output"],
)
def test_a_declaration_that_contradicts_the_contract_is_refused(repository, request, setting, part):
    repository.add(request.node.callspec.id, TASK, config=BARE + setting)
    repository.refuse(request.node.callspec.id, part)


def test_a_reload_takes_the_new_configuration_and_unloading_leaves_nothing(repository, expected):
    repository.add("changing", TASK, config=BARE + "instance_group [ { kind: KIND_CPU count: 2 } ]")
    assert repository.load("changing").status_code == 200
    assert len(repository.stubs("changing")) == 2
    repository.configure("changing", TASK, BARE + "max_batch_size: 2")
    assert repository.load("changing").status_code == 200
    with pytest.raises(Refused, match="batch-size must be <= 2"):
        infer_grpc(repository.launcher, "changing", ROWS)
    repository.configure("changing", TASK)
    assert repository.load("changing").status_code == 200
    assert infer_grpc(repository.launcher, "changing", ROWS) == expected
    repository.unload("changing")
    wait_until(lambda: repository.state("changing") == ("UNAVAILABLE", "unloaded") and not repository.stubs("changing"))


def test_a_failed_reload_leaves_the_old_model_in_place(repository, expected):
    repository.add("kept", TASK)
    assert repository.load("kept").status_code == 200
    repository.configure("kept", {"task": "reranking"})
    assert repository.load("kept").status_code == 400
    assert infer_grpc(repository.launcher, "kept", ROWS) == expected
    repository.unload("kept")


def test_an_unload_lets_requests_under_way_finish_and_takes_no_new_ones(repository, encoder_repository):
    """Triton 2.51 calls ``finalize`` only when no request is in flight."""
    leaving = Repository(repository.launcher, repository._folder, encoder_repository / SLOW)
    leaving.add("leaving", TASK | {"max_num_seqs": "1"})
    assert leaving.load("leaving").status_code == 200
    (stub,) = leaving.stubs("leaving")
    with open_channel(repository.launcher) as channel:
        pending = [Pending(channel, infer_message("leaving", LONG)) for _ in range(2)]
        wait_until(lambda: stub.cpu_times().user > 2)
        leaving.unload("leaving")
        with pytest.raises(Refused, match="has no available versions"):
            infer_grpc(repository.launcher, "leaving", ROWS)
        assert not any(each.done() for each in pending)
        assert [each.outcome() for each in pending] == ["answered", "answered"]
    wait_until(lambda: not stub.is_running() and leaving.state("leaving") == ("UNAVAILABLE", "unloaded"))
