"""What ``FastServeServer.infer`` sends, and the config.pbtxt that a server is started with."""

from __future__ import annotations

import concurrent.futures
import threading

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fastserve.errors import ConfigError, InvalidRequest, ToolError
from fastserve.server import inference
from fastserve.server.inference import ServedModel
from fastserve.server.repository import Changes, lay_out_export
from fastserve.tools.client import GenerateResponse, RequestFailed

WAIT_S = 20


class FakeClient:
    """Answers every request with itself, or with an error when its first text is "fail"."""

    def __init__(self):
        self.requests = []

    def infer(self, model, request):
        self.requests.append(request)
        (first, *_) = request.texts.values()
        if first == "fail":
            raise RequestFailed("INTERNAL", "as asked")
        return {"result": [f'"{first}"']}

    def stream(self, request):
        self.requests.append(request)
        return self

    def __enter__(self):
        return iter([GenerateResponse({"text_output": [f"more of {self.requests[-1].text}"], "finish_reason": ["stop"]}, 0.0)])

    def __exit__(self, *_):
        pass

    def close(self):
        self.requests.append("closed")


@pytest.fixture
def client(monkeypatch):
    client = FakeClient()
    monkeypatch.setattr(inference, "connect_encoder", lambda url: client)
    monkeypatch.setattr(inference, "connect", lambda url: client)
    monkeypatch.setattr(inference, "CONCURRENCY", 1)
    return client


def sent(client, task, texts, **arguments):
    ServedModel("http://here", "m", task).infer(texts, arguments)
    return client.requests


def test_second_texts_go_to_their_rows_and_one_goes_to_all(client):
    requests = sent(client, "question-answering", ["who?", "where?"], context="London")
    assert [request.texts for request in requests] == [{"question": q, "context": "London"} for q in ("who?", "where?")]
    client.requests.clear()
    requests = sent(client, "text-classification", ["a", "b"], text_pair=["c", "d"])
    assert [request.texts for request in requests] == [
        {"text_input": "a", "text_pair": "c"},
        {"text_input": "b", "text_pair": "d"},
    ]


def test_spans_and_labels_are_inputs_and_everything_else_is_a_parameter(client):
    (first, second) = sent(client, "relation-extraction", ["a b", "c d"], head=(0, 1), tail=[(2, 3), (1, 2)], top_k=3)
    assert (first.spans, second.spans) == ({"head": (0, 1), "tail": (2, 3)}, {"head": (0, 1), "tail": (1, 2)})
    assert first.parameters == {"top_k": 3}
    client.requests.clear()
    requests = sent(client, "zero-shot-classification", ["a"], candidate_labels=["x", "y"], multi_label=True)
    assert (requests[0].candidate_labels, requests[0].parameters) == (("x", "y"), {"multi_label": True})
    client.requests.clear()
    requests = sent(client, "zero-shot-classification", ["a"], candidate_labels="x,y", targets=["ü"])
    assert requests[0].parameters == {"candidate_labels": "x,y", "targets": '["\\u00fc"]'}


@pytest.mark.parametrize("arguments", [{"context": ["a"]}, {"context": []}, {"head": [(0, 1)] * 3}, {"tail": []}])
def test_a_list_of_another_length_is_refused_by_name(client, arguments):
    (name,) = arguments
    with pytest.raises(InvalidRequest, match=rf"^{name}: got '\d values', allowed: one for each of the 2 texts, or one for all"):
        sent(client, "question-answering", ["a", "b"], **arguments)


@pytest.mark.parametrize(
    ("texts", "arguments", "words"),
    [([3], {}, "texts: got 3"), (["a"], {"k": object()}, "k: got '?<object"), (["a"], {"k": {1}}, "k: got {1}")],
)
def test_what_cannot_be_sent_is_refused_by_name(client, texts, arguments, words):
    with pytest.raises(InvalidRequest, match=words):
        sent(client, "fill-mask", texts, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"head": 5},
        {"head": [3]},
        {"tail": [(1, 2, 3)]},
        {"tail": [("a", "b")]},
        {"text_pair": 5},
        {"candidate_labels": 5},
    ],
    ids=str,
)
def test_what_is_no_list_or_no_span_is_refused_by_name(client, arguments):
    (name,) = arguments
    with pytest.raises(InvalidRequest, match=f"^{name}: got "):
        sent(client, "relation-extraction", ["a"], **arguments)


def test_a_language_model_is_asked_for_whole_answers(client):
    served = ServedModel("http://here", "m", "text-generation")
    assert served.infer(["once"], {"max_tokens": 3}) == ["more of once"]
    (request,) = client.requests
    assert (request.parameters, request.stream, request.exclude_input_in_output) == ({"max_tokens": 3}, False, True)


def test_answers_keep_the_order_and_the_first_error_is_raised(client):
    served = ServedModel("http://here", "m", "fill-mask")
    assert served.infer(["a", "b", "c"], {}) == ["a", "b", "c"]
    assert served.infer([], {}) == []
    with pytest.raises(RequestFailed, match="as asked"):
        served.infer(["a", "fail", "c"], {})
    served.close()
    served.close()
    assert client.requests.count("closed") == 1


def test_threads_that_ask_at_once_share_one_connection_which_is_closed_with_the_server(client, monkeypatch):
    made, both = [], threading.Barrier(2)

    def connect(url):
        made.append(url)
        both.wait(WAIT_S)  # the other thread is on its way here as well, unless it waits for this one
        return client

    monkeypatch.setattr(inference, "connect_encoder", connect)
    served = ServedModel("http://here", "m", "fill-mask")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(served.infer, ["a"], {}) for _ in range(2)]
        both.wait(WAIT_S)
        assert [answer.result(WAIT_S) for answer in answers] == [["a"], ["a"]]
    assert made == ["http://here"]
    served.close()
    with pytest.raises(ToolError, match="the server of m is not running any more"):
        served.infer(["a"], {})
    assert len(made) == 1


class CountedList(list):
    """Counts how often all of it is read."""

    reads = 0

    def __iter__(self):
        self.reads += 1
        return super().__iter__()


def test_a_list_of_second_texts_is_read_as_often_for_many_texts_as_for_one(client):
    reads = []
    for count in (1, 50):
        given = CountedList("c" * count)
        sent(client, "text-classification", ["a"] * count, text_pair=given)
        reads.append(given.reads)
    assert reads[0] == reads[1]


# --- config.pbtxt -----------------------------------------------------------------------------------------------------

EXPORTED = """
# Written by `fastserve export`; yours to edit.
name: "exported"
backend: "fastserve"
max_batch_size: 64
dynamic_batching { preferred_batch_size: [ 4, 16, 64 ] max_queue_delay_microseconds: 300 }
instance_group [ { kind: KIND_CPU count: 1 } ]
parameters { key: "task" value: { string_value: "fill-mask" } }
parameters { key: "max_batched_tokens" value: { string_value: "512" } }
"""


def laid_out(tmp_path, task, changes, text=EXPORTED, version="3"):
    exported = tmp_path / "exported" / version
    exported.mkdir(parents=True)
    (exported / "manifest.json").write_text("{}")
    if text is not None:
        (exported.parent / "config.pbtxt").write_text(text)
    lay_out_export(tmp_path / "models", "mine", exported, task, changes)
    entry = tmp_path / "models" / "mine"
    (link,) = [path for path in entry.iterdir() if path.is_symlink()]
    assert (link / "manifest.json").is_file()
    config = text_format.Parse((entry / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    return link.name, config, {key: value.string_value for key, value in config.parameters.items()}


def test_an_encoders_batches_instances_and_settings_are_changed_and_the_rest_stays(tmp_path):
    number, config, parameters = laid_out(tmp_path, "fill-mask", Changes(16, 3, {"max_queue_size": "9"}))
    assert (number, config.name, config.max_batch_size) == ("3", "", 16)
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 300
    assert [group.count for group in config.instance_group] == [3]
    assert parameters == {"task": "fill-mask", "max_batched_tokens": "512", "max_queue_size": "9"}


def test_without_changes_everything_stays(tmp_path):
    _, config, parameters = laid_out(tmp_path, "fill-mask", Changes())
    assert (config.max_batch_size, [group.count for group in config.instance_group]) == (64, [1])
    assert parameters == {"task": "fill-mask", "max_batched_tokens": "512"}


def test_an_export_without_a_configuration_gets_one_of_its_task(tmp_path):
    number, config, parameters = laid_out(tmp_path, "reranking", Changes(), text=None, version="a-copied-version")
    assert (number, config.backend, parameters) == ("1", "fastserve", {"task": "reranking"})


def test_the_batch_size_of_a_language_model_is_its_number_of_sequences(tmp_path):
    text = 'backend: "fastserve"\nmax_batch_size: 0\nmodel_transaction_policy { decoupled: true }\n'
    _, config, parameters = laid_out(tmp_path, "text-generation", Changes(batch_size=8), text=text)
    assert (config.max_batch_size, config.model_transaction_policy.decoupled, parameters) == (0, True, {"max_num_seqs": "8"})


def test_settings_of_another_engine_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="kv_cache_bytes: unknown key"):
        laid_out(tmp_path, "fill-mask", Changes(parameters={"kv_cache_bytes": "1"}))


def test_a_configuration_that_is_none_is_told_with_its_path(tmp_path):
    with pytest.raises(ToolError, match=r"exported/config\.pbtxt: is no configuration of Triton"):
        laid_out(tmp_path, "fill-mask", Changes(), text="backend: ")
