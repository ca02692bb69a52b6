"""Many rows at once and many clients at once: nobody's answer depends on anybody else's."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastserve.triton.encoder_io import encoder_outputs
from tests.e2e.encoder_wire import call_grpc, infer_grpc, infer_http, infer_message
from tests.e2e.metrics_page import read_metric, settled, wait_until
from tests.e2e.processes import server_processes
from tests.e2e.served_encoders import SOURCES, TWO_INSTANCES
from tests.e2e.test_contract_wire import open_channel
from tests.synthetic.tiny_encoders import WORDS

ROWS = 7
CONCURRENCY = 32
WIRE_TYPES = {"TYPE_STRING": "BYTES", "TYPE_FP32": "FP32", "TYPE_INT32": "INT32"}


def text_of(rng, words):
    return " ".join(rng.choices(WORDS, k=words))


def rows_of(model, rng, count):
    """Random inputs of mixed lengths: some of a word, some of several windows."""
    texts = [text_of(rng, rng.choice((1, 4, 12, 30, 60, 400))) for _ in range(count)]
    if model == "answer":
        return {"question": [text_of(rng, 4) for _ in texts], "context": texts}
    if model == "fill":
        return {"text_input": [f"{text_of(rng, 3)} [MASK] {text}" for text in texts]}
    if model == "relate":
        texts = ["a " + text for text in texts]
        return {"text_input": texts, "head": [[0, 1] for _ in texts], "tail": [[2, 2 + len(text.split()[1])] for text in texts]}
    if model == "zero-shot":
        return {"text_input": texts, "candidate_labels": [["city", "food", "book"] for _ in texts]}
    return {"text_input": [text_of(rng, 4) for _ in texts], "text_pair": texts} if model == "rank" else {"text_input": texts}


def one_row(inputs, index):
    return {name: rows[index : index + 1] for name, rows in inputs.items()}


def is_padding(name, value):
    return value == {"label": "", "score": 0.0, "start": -1, "end": -1}[name]


def assert_row_is(model, row, alone):
    """Row of a batch == the same row asked for alone, but for the padding of entities."""
    for name, value in alone.items():
        if model == "tag" and name != "result":
            assert all(is_padding(name, each) for each in row[name][len(value) :]), name
            assert row[name][: len(value)] == value, name
        else:
            assert row[name] == value, name


@pytest.mark.parametrize("model", SOURCES)
@pytest.mark.parametrize("infer", [infer_grpc, infer_http], ids=["grpc", "http"])
def test_each_row_of_a_batch_gets_the_answer_it_gets_alone(encoder_server, model, infer):
    inputs = rows_of(model, random.Random(model), ROWS)
    reply = infer(encoder_server, model, inputs)
    for index in range(ROWS):
        assert_row_is(model, reply.row(index), infer(encoder_server, model, one_row(inputs, index)).row(0))


@pytest.mark.parametrize("model", SOURCES)
def test_outputs_have_the_declared_types_and_a_batch_dimension(encoder_server, model):
    reply = infer_grpc(encoder_server, model, rows_of(model, random.Random(1), ROWS))
    specs = encoder_outputs(SOURCES[model].task)
    assert reply.types == {spec.name: WIRE_TYPES[spec.data_type] for spec in specs}
    for spec in specs:
        assert len(reply.shapes[spec.name]) == 2 and reply.shapes[spec.name][0] == ROWS
        assert spec.dims == (-1,) or reply.shapes[spec.name][1:] == spec.dims


@pytest.mark.parametrize("infer", [infer_grpc, infer_http], ids=["grpc", "http"])
def test_only_the_outputs_that_were_asked_for_are_sent(encoder_server, infer):
    inputs = {"text_input": ["a good film"]}
    everything = infer(encoder_server, "classify", inputs)
    some = infer(encoder_server, "classify", inputs, outputs=("score", "label"))
    assert set(some.values) == {"score", "label"}
    assert all(some.values[name] == everything.values[name] for name in some.values)


@pytest.mark.parametrize("model", [*SOURCES, TWO_INSTANCES])
def test_32_clients_at_once_get_the_answers_they_get_alone_bit_for_bit(encoder_server, model):
    rng = random.Random(3)
    asked = [rows_of(model, rng, rng.choice((1, 1, 1, 3))) for _ in range(4 * CONCURRENCY)]
    with open_channel(encoder_server) as channel, ThreadPoolExecutor(CONCURRENCY) as pool:
        messages = [infer_message(model, inputs) for inputs in asked]
        alone = [call_grpc(channel, message) for message in messages]
        together = list(pool.map(lambda message: call_grpc(channel, message), messages))
    assert together == alone


def test_two_instances_share_the_work(encoder_server):
    def answered(instance):
        label = f"{TWO_INSTANCES}_0_{instance}"
        return read_metric(encoder_server, "fastserve:requests_total", TWO_INSTANCES, instance=label, ending="success")

    before = settled(lambda: [answered(0), answered(1)])
    stubs = [process for process in server_processes(encoder_server) if any(TWO_INSTANCES in part for part in process.cmdline())]
    assert len(stubs) == 2
    with open_channel(encoder_server) as channel, ThreadPoolExecutor(8) as pool:
        messages = [infer_message(TWO_INSTANCES, {"text_input": [f"a good film {index}"]}) for index in range(200)]
        list(pool.map(lambda message: call_grpc(channel, message), messages))
    wait_until(lambda: answered(0) + answered(1) == sum(before) + 200)
    assert answered(0) > before[0] and answered(1) > before[1]


def test_tokens_runs_and_endings_are_counted(encoder_server):
    families = ("vllm:prompt_tokens_total", "fastserve:iterations_total", "fastserve:requests_total")

    def numbers():
        return [read_metric(encoder_server, family, "classify") for family in families]

    before = settled(numbers)
    infer_grpc(encoder_server, "classify", {"text_input": ["good film", "a"]})  # with [CLS] and [SEP]: 4 and 3 tokens
    wait_until(lambda: numbers() == [before[0] + 7, before[1] + 1, before[2] + 1])
    assert read_metric(encoder_server, "vllm:num_requests_waiting", "classify") == 0
