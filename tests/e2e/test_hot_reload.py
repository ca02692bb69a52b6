"""New versions under load: requests go on, each on one version; broken versions change nothing; two versions at once."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from fastserve.export.options import ExportOptions
from fastserve.export.text_generation import export_model
from fastserve.tools.client import GenerateRequest, connect
from fastserve.tools.launcher import LaunchOptions, TritonLauncher
from tests.e2e.clients import ask
from tests.e2e.explicit_repository import BARE, Repository
from tests.e2e.metrics_page import read_metric, wait_until
from tests.e2e.processes import resident_bytes, server_processes, shared_memory_bytes
from tests.e2e.test_contract_wire import ask_grpc, grpc_message, question
from tests.synthetic.tiny_models import llama_config, save_model

MODEL = "changing"
GREEDY = {"temperature": 0, "ignore_eos": True, "max_tokens": 40}
PROMPT = (5, 6, 7)
CLIENTS = 8
SWITCHES = 5
POLLED_SWITCHES = 2
REQUESTS = 500
LOAD_S = 300.0
RSS_GROWTH = 1.10


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Version folders of two exported models of the same shape that answer differently."""
    folder = tmp_path_factory.mktemp("versions")
    for seed in (1, 2):
        source = save_model(llama_config(max_position_embeddings=4096), folder / f"source-{seed}", seed=seed)
        export_model(str(source), ExportOptions(output=folder / f"export-{seed}", name=MODEL))
    return [folder / f"export-{seed}" / MODEL / "1" for seed in (1, 2)]


class Versions(Repository):
    """A running Triton with ``MODEL``, whose versions alternate between two models: odd ones are the first."""

    def __init__(self, launcher, folder, versions):
        super().__init__(launcher, folder, None)
        self.folder, self._versions = folder, versions

    def publish(self, version):
        """Put a version in its place in one rename, as the export does."""
        staged = self.folder.parent / f"staged-{version}"
        shutil.copytree(self._versions[(version - 1) % 2], staged)
        staged.rename(self.folder / MODEL / str(version))

    def states(self):
        entries = self.http("POST", "repository/index").json()
        return {entry["version"]: entry["state"] for entry in entries if entry["name"] == MODEL and entry.get("state")}

    def serves_only(self, version):
        return [number for number, state in self.states().items() if state == "READY"] == [str(version)]

    def has_only_processes_of(self, *versions):
        running = ""
        for process in server_processes(self.launcher):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                running += " ".join(process.cmdline())
        return all((f"/{MODEL}/{number}/" in running) == (int(number) in versions) for number in self.states())


@contextlib.contextmanager
def started(mode, versions, folder):
    """A Triton that serves version 1."""
    (folder / MODEL).mkdir(parents=True)
    (folder / MODEL / "config.pbtxt").write_text(BARE)
    shutil.copytree(versions[0], folder / MODEL / "1")
    options = {"extra_args": ("--repository-poll-secs", "1")} if mode == "poll" else {"load_models": (MODEL,)}
    with TritonLauncher(folder, LaunchOptions(ready_timeout_s=LOAD_S, model_control_mode=mode, **options)) as launcher:
        yield Versions(launcher, folder, versions)


@pytest.fixture(params=["explicit", "poll"])
def serving(request, versions, tmp_path):
    with started(request.param, versions, tmp_path / "repository") as repository:
        yield repository


@pytest.fixture
def explicit(versions, tmp_path):
    with started("explicit", versions, tmp_path / "repository") as repository:
        yield repository


def streaming_request():
    return GenerateRequest(MODEL, input_ids=list(PROMPT), parameters=GREEDY, stream=True)


class Load:
    """Clients that stream one request after another until they are stopped."""

    def __init__(self, url):
        self._url, self._stopped, self._pool = url, threading.Event(), ThreadPoolExecutor(CLIENTS)
        self.answers = []

    @property
    def sent(self):
        """Requests that have ended."""
        return len(self.answers)

    def _work(self):
        with connect(self._url) as client:
            while not self._stopped.is_set():
                self.answers.append(ask(client, streaming_request()))

    def __enter__(self):
        self._futures = [self._pool.submit(self._work) for _ in range(CLIENTS)]
        return self

    def stop(self):
        self._stopped.set()
        for future in self._futures:
            future.result(LOAD_S)

    def __exit__(self, *_):
        self._stopped.set()
        self._pool.shutdown()


def answers_of(serving):
    with connect(serving.launcher.grpc_url) as client:
        return ask(client, streaming_request()).output_ids


def test_versions_change_under_load_and_no_stream_fails_or_mixes_them(serving):
    """Memory and /dev/shm are looked at between switches, when one version is loaded."""
    is_explicit = serving.launcher.options.model_control_mode == "explicit"
    last = 1 + (SWITCHES if is_explicit else POLLED_SWITCHES)
    expected, resident, shared = {1: answers_of(serving)}, {}, {}
    with Load(serving.launcher.grpc_url) as load:
        for version in range(2, last + 1):
            serving.publish(version)
            assert not is_explicit or serving.load(MODEL).status_code == 200
            wait_until(lambda version=version: serving.serves_only(version), LOAD_S)
            wait_until(lambda version=version: serving.has_only_processes_of(version), LOAD_S)
            expected.setdefault(2 - version % 2, answers_of(serving))
            seen = load.sent
            wait_until(lambda seen=seen: load.sent > seen + CLIENTS, LOAD_S)
            resident[version] = sum(resident_bytes(process) for process in server_processes(serving.launcher))
            shared[version] = shared_memory_bytes(serving.launcher)
        wait_until(lambda: load.sent >= REQUESTS, LOAD_S)
        load.stop()
    assert [answer.error for answer in load.answers if answer.error] == []
    assert expected[1] != expected[2]
    ways = Counter(answer.output_ids for answer in load.answers)
    assert set(ways) == set(expected.values()), "a stream mixed two versions"
    assert load.sent >= REQUESTS
    assert all(answer.finish_reason == "length" and answer.num_output_tokens == 40 for answer in load.answers)
    assert resident[last] <= resident[2] * RSS_GROWTH, resident
    assert shared[last] <= shared[2], shared


def test_a_broken_version_leaves_the_old_one_serving_and_says_why(serving):
    expected = answers_of(serving)
    is_explicit = serving.launcher.options.model_control_mode == "explicit"
    with Load(serving.launcher.grpc_url) as load:
        broken = serving.folder.parent / "broken"
        shutil.copytree(serving.folder / MODEL / "1", broken)
        manifest = json.loads((broken / "manifest.json").read_text())
        (broken / "manifest.json").write_text(json.dumps(manifest | {"manifest_version": 999}))
        broken.rename(serving.folder / MODEL / "2")
        if is_explicit:
            answer = serving.load(MODEL)
            assert answer.status_code == 400 and "999" in answer.json()["error"], answer.text
        reasons = {}

        def says_why():
            entries = serving.http("POST", "repository/index").json()
            reasons.update({entry["version"]: entry.get("reason", "") for entry in entries if "version" in entry})
            return "999" in reasons.get("2", "")

        wait_until(says_why, LOAD_S)
        seen = load.sent
        wait_until(lambda: load.sent > seen + CLIENTS, LOAD_S)
        assert serving.serves_only(1)
        load.stop()
    assert {(answer.output_ids, answer.error) for answer in load.answers} == {(expected, None)}
    shutil.rmtree(serving.folder / MODEL / "2")
    serving.publish(2)  # mended
    assert not is_explicit or serving.load(MODEL).status_code == 200
    wait_until(lambda: serving.serves_only(2), LOAD_S)
    assert answers_of(serving) != expected


def test_two_versions_are_served_at_once_each_under_its_number(explicit):
    alone = answers_of(explicit)
    explicit.publish(2)
    explicit.configure(MODEL, config=BARE + "version_policy { specific { versions: [1, 2] } }")
    assert explicit.load(MODEL).status_code == 200
    assert explicit.states() == {"1": "READY", "2": "READY"}

    def tokens():
        return [read_metric(explicit.launcher, "vllm:generation_tokens_total", MODEL, version=v) for v in ("1", "2")]

    before, ids = tokens(), {}
    for version in ("1", "2", ""):
        message = grpc_message(MODEL, question(GREEDY, input_ids=list(PROMPT), returns=("output_ids",)))
        message.model_version = version
        (row,) = ask_grpc(explicit.launcher, message)
        ids[version] = tuple(row.values["output_ids"])
    assert ids["1"] == alone and ids["2"] == ids[""] != alone, "without a version, the newest answers"
    wait_until(lambda: tokens() == [before[0] + 40, before[1] + 80])


def test_a_configuration_given_with_the_load_counts_until_config_pbtxt_changes(explicit):
    expected = answers_of(explicit)
    override = {"backend": "fastserve", "parameters": {"max_model_len": {"string_value": "32"}}}

    def refusal():
        body = question(GREEDY, input_ids=[5] * 32)
        return explicit.http("POST", f"models/{MODEL}/generate", body).json().get("error", "")

    assert refusal() == ""
    answer = explicit.http("POST", f"repository/models/{MODEL}/load", {"parameters": {"config": json.dumps(override)}})
    assert answer.status_code == 200, answer.text
    assert "at most 31" in refusal()
    override["parameters"]["max_model_len"]["string_value"] = "none"
    answer = explicit.http("POST", f"repository/models/{MODEL}/load", {"parameters": {"config": json.dumps(override)}})
    assert answer.status_code == 400 and "max_model_len: got 'none'" in answer.json()["error"]
    assert "at most 31" in refusal(), "the last one that loaded still serves"
    explicit.configure(MODEL, {"max_num_seqs": "16"})
    assert explicit.load(MODEL).status_code == 200
    assert refusal() == "" and answers_of(explicit) == expected
