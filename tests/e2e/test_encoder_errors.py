"""What goes wrong with a request to an encoder: the code, the message, and neighbours that notice nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from tests.e2e.encoder_wire import call_grpc, generate, infer_grpc, infer_http, infer_message
from tests.e2e.metrics_page import read_metric, wait_until
from tests.e2e.served_encoders import QUEUE_SIZE, SLOW
from tests.e2e.test_contract_wire import Refused, open_channel

TEXT = {"text_input": ["a good film"]}
LONG = {"text_input": ["good film and food " * 100] * 64}
"""Some 250 runs of the slow model: a second or more."""
FULL = f"the queue is full: {QUEUE_SIZE} requests, max_queue_size is {QUEUE_SIZE}; try again later"
LATE = "the deadline (deadline_ms) passed before the request finished"


@dataclasses.dataclass(frozen=True)
class Wrong:
    """``message``: parts of what is said, or all of it."""

    model: str
    inputs: dict
    message: str | tuple[str, ...]
    parameters: dict = dataclasses.field(default_factory=dict)
    in_json: bool = True


WRONG = {
    "empty text": Wrong("classify", {"text_input": [""]}, ("text_input: got ''", "not empty")),
    "an empty row among good ones": Wrong("tag", {"text_input": ["a", "", "b"]}, ("text_input: got ''", "not empty")),
    "not UTF-8": Wrong(
        "classify", {"text_input": [b"ab\xff"]}, "text_input: got b'ab\\xff', allowed: valid UTF-8 (byte 2 is not)", in_json=False
    ),
    "unknown parameter": Wrong("classify", TEXT, ("temperature: got 1", "top_k"), {"temperature": 1}),
    "parameter out of range": Wrong("classify", TEXT, ("top_k: got 0", "at least 1"), {"top_k": 0}),
    "parameter of the wrong type": Wrong("classify", TEXT, ("top_k: got 'many'",), {"top_k": "many"}),
    "a bad deadline": Wrong("classify", TEXT, ("deadline_ms: got -1",), {"deadline_ms": -1}),
    "unknown aggregation": Wrong("tag", TEXT, ("aggregation_strategy: got 'best'", "first"), {"aggregation_strategy": "best"}),
    "no mask": Wrong("fill", TEXT, ("text_input",)),
    "no labels": Wrong("zero-shot", TEXT, ("candidate_labels",)),
    "labels that are no list": Wrong("zero-shot", TEXT, ("candidate_labels",), {"candidate_labels": "[1]"}),
    "a span outside the text": Wrong("relate", TEXT | {"head": [[0, 1]], "tail": [[50, 60]]}, ("tail",)),
    "no markers": Wrong("relate", TEXT, ("text_input",)),
    "a first text that leaves no room": Wrong(
        "rank", {"text_input": ["good film " * 100], "text_pair": ["a"]}, ("text_input", "tokens")
    ),
}
"""Requests that our side refuses."""
REFUSED_BY_TRITON = {
    "a missing input": Wrong("rank", TEXT, ("expected 2 inputs", "got 1")),
    "an unknown input": Wrong("tag", TEXT | {"text_pair": ["b"]}, ("text_pair",)),
    "too many rows": Wrong("classify", {"text_input": ["a"] * 65}, ("batch-size must be <= 64",)),
    "another number of rows": Wrong("classify", TEXT | {"text_pair": ["b", "c"]}, ("batch size does not match",)),
    "two texts in a row": Wrong("classify", {"text_input": [["a", "b"]]}, ("unexpected shape",)),
    "another type": Wrong("classify", {"text_input": [7]}, ("data-type", "INT32")),
}


def assert_says(error, message):
    if isinstance(message, str):
        assert error.message == message
    else:
        assert all(part in error.message for part in message), error.message


@contextlib.contextmanager
def neighbours(server):
    """Clients whose answers may not change whatever happens inside the ``with``."""
    expected = infer_grpc(server, "classify", TEXT)
    stop, answers = threading.Event(), []

    def keep_asking():
        with open_channel(server) as channel:
            while not stop.is_set():
                answers.append(call_grpc(channel, infer_message("classify", TEXT)))

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(keep_asking) for _ in range(4)]
        try:
            yield
        finally:
            wait_until(lambda: len(answers) >= 8 or any(future.done() for future in futures))
            stop.set()
    for future in futures:
        future.result()
    assert all(answer == expected for answer in answers)


@pytest.mark.parametrize("wrong", [pytest.param(wrong, id=name) for name, wrong in WRONG.items()])
def test_a_wrong_request_is_refused_by_name_and_code(encoder_server, wrong):
    with pytest.raises(Refused) as caught:
        infer_grpc(encoder_server, wrong.model, wrong.inputs, **wrong.parameters)
    assert (caught.value.status, caught.value.code) == ("INVALID_ARGUMENT", "INVALID_ARG")
    assert_says(caught.value, wrong.message)
    if wrong.in_json:
        with pytest.raises(Refused) as caught:
            infer_http(encoder_server, wrong.model, wrong.inputs, **wrong.parameters)
        assert (caught.value.status, caught.value.code) == (400, "INVALID_ARG")
        assert_says(caught.value, wrong.message)


@pytest.mark.parametrize("wrong", [pytest.param(wrong, id=name) for name, wrong in REFUSED_BY_TRITON.items()])
def test_what_contradicts_the_declaration_does_not_even_reach_us(encoder_server, wrong):
    for infer in (infer_grpc, infer_http):
        with pytest.raises(Refused) as caught:
            infer(encoder_server, wrong.model, wrong.inputs)
        assert caught.value.code is None and caught.value.status in ("INVALID_ARGUMENT", 400)
        assert_says(caught.value, wrong.message)


def test_generate_names_unknown_parameters_too(encoder_server):
    with pytest.raises(Refused) as caught:
        generate(encoder_server, "classify", {"text_input": "a"}, temperature=1)
    assert (caught.value.status, caught.value.code) == (400, "INVALID_ARG")
    assert "temperature: got" in caught.value.message


def test_wrong_requests_among_good_ones_change_no_answer(encoder_server):
    wrongs = [wrong for wrong in WRONG.values() if wrong.model == "classify"] * 5
    with neighbours(encoder_server):
        for wrong in wrongs:
            with pytest.raises(Refused):
                infer_grpc(encoder_server, wrong.model, wrong.inputs, **wrong.parameters)


# --- under load -------------------------------------------------------------------------------------------------------


class Pending:
    """A request on its way."""

    def __init__(self, channel, message):
        self._call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(message)

    def cancel(self):
        self._call.cancel()

    def done(self):
        return self._call.done()

    def outcome(self):
        """ "answered", or the gRPC code and our message."""
        try:
            self._call.result(timeout=120)
        except grpc.FutureCancelledError:
            return "CANCELLED", ""
        except grpc.RpcError as error:
            return error.code().name, Refused(error.details()).message
        return "answered"


def in_engine(server):
    """Unfinished requests of SLOW."""
    return sum(read_metric(server, f"vllm:num_requests_{kind}", SLOW) for kind in ("running", "waiting"))


def ended(server, ending):
    return read_metric(server, "fastserve:requests_total", SLOW, ending=ending)


@pytest.fixture
def busy(encoder_server):
    """An open channel and as many long requests as the queue takes; they end with the test."""
    wait_until(lambda: in_engine(encoder_server) == 0)
    with open_channel(encoder_server) as channel:
        pending = [Pending(channel, infer_message(SLOW, LONG)) for _ in range(QUEUE_SIZE)]
        wait_until(lambda: in_engine(encoder_server) == QUEUE_SIZE)
        yield channel, pending
        for each in pending:
            each.cancel()
    wait_until(lambda: in_engine(encoder_server) == 0)


def test_a_full_queue_refuses_with_both_numbers_and_answers_everybody_it_took(encoder_server, busy):
    channel, pending = busy
    refused = [Pending(channel, infer_message(SLOW, TEXT)) for _ in range(5)]
    assert [each.outcome() for each in refused] == [("UNAVAILABLE", FULL)] * 5
    with pytest.raises(Refused, match="the queue is full") as caught:
        infer_http(encoder_server, SLOW, TEXT)
    assert caught.value.code == "UNAVAILABLE"
    with neighbours(encoder_server):
        assert [each.outcome() for each in pending] == ["answered"] * QUEUE_SIZE


def test_a_cancelled_request_makes_room_long_before_it_would_have_ended(encoder_server, busy):
    _, pending = busy
    before = ended(encoder_server, "cancelled")
    pending.pop().cancel()
    wait_until(lambda: ended(encoder_server, "cancelled") == before + 1)
    assert infer_grpc(encoder_server, SLOW, TEXT).values["label"]
    assert not any(each.done() for each in pending)


def test_a_short_text_is_answered_while_long_documents_are_under_way(encoder_server, busy):
    channel, pending = busy
    pending.pop().cancel()
    wait_until(lambda: in_engine(encoder_server) < QUEUE_SIZE)
    assert Pending(channel, infer_message(SLOW, TEXT)).outcome() == "answered"
    assert not any(each.done() for each in pending)


def test_a_short_text_is_answered_while_a_book_is_still_being_read(encoder_server):
    with open_channel(encoder_server) as channel:
        call_grpc(channel, infer_message("classify", TEXT))
        book = Pending(channel, infer_message("classify", {"text_input": ["good film and food " * 100_000]}, truncation=True))
        for _ in range(5):
            call_grpc(channel, infer_message("classify", TEXT))
        assert not book.done()
        assert book.outcome() == "answered"


def test_a_deadline_ends_a_request_whose_turn_did_not_come_and_one_that_is_under_way(encoder_server):
    wait_until(lambda: in_engine(encoder_server) == 0)
    with open_channel(encoder_server) as channel:
        late = [Pending(channel, infer_message(SLOW, LONG, deadline_ms=milliseconds)) for milliseconds in (300, 400)]
        with neighbours(encoder_server):
            assert [each.outcome() for each in late] == [("UNAVAILABLE", LATE)] * 2
    assert infer_grpc(encoder_server, SLOW, TEXT, deadline_ms=20_000).values["label"]
