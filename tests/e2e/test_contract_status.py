"""The gRPC status of every kind of error, which a client sees that asks for it with the metadata ``triton_grpc_error``.

On a server of its own, because Triton 2.51 may die (signal 11) when it ends a stream with a status: of two hundred to two
thousand such errors, sooner when it has other streams, and with whatever backend. A server that died of it is started again
and asked again; what is tested is what the others say.
"""

from __future__ import annotations

import pytest

from fastserve.export.options import ExportOptions
from fastserve.export.text_generation import export_model
from fastserve.tools.launcher import LaunchOptions, TritonLauncher
from tests.e2e.test_contract_wire import ERRORS_AS_STATUS, Refused, grpc_message, open_channel, question, rows_of, start_call

LONG = {"temperature": 0, "ignore_eos": True, "max_tokens": 10_000}
CONNECTION_LOST = ("Socket closed", "failed to connect", "Connection re", "Broken pipe", "GOAWAY")
STARTS = 4


class FrailServer:
    """A Triton that is started again when it has died."""

    def __init__(self, repository):
        self._launcher = TritonLauncher(repository, LaunchOptions(ready_timeout_s=60.0))

    def refusal(self, inputs, *, beside=None):
        """Status and message of a request that is refused. ``beside``: inputs of a stream that runs meanwhile."""
        for _ in range(STARTS):
            if not self._launcher.is_running():
                self._launcher.stop()
                self._launcher.start()
            try:
                with open_channel(self._launcher) as channel:
                    if beside is not None:
                        running = rows_of(start_call(channel, grpc_message("llama-long", beside)))  # until it is collected
                        next(running)
                    list(rows_of(start_call(channel, grpc_message("llama-long", inputs), ERRORS_AS_STATUS)))
            except Refused as error:
                if not any(part in error.message for part in CONNECTION_LOST):
                    return error.status, error.message
                self._launcher.stop()
            else:
                raise AssertionError(f"{inputs} was not refused")
        raise AssertionError(f"Triton died {STARTS} times in a row")

    def stop(self):
        self._launcher.stop()


@pytest.fixture(scope="module")
def frail(sources, tmp_path_factory):
    """Serves ``llama-long`` with room for one request."""
    repository = tmp_path_factory.mktemp("status")
    export_model(str(sources["llama-long"]), ExportOptions(output=repository, name="llama-long"))
    with (repository / "llama-long" / "config.pbtxt").open("a") as config:
        config.write('parameters { key: "max_queue_size" value: { string_value: "1" } }\n')
    server = FrailServer(repository)
    yield server
    server.stop()


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_is_wrong_is_an_invalid_argument(frail, stream):
    for inputs in (
        question({"temperature": -1}, text_input="hello", stream=stream),
        question({"max_tokns": 5}, text_input="hello", stream=stream),
        question(text_input="", stream=stream),
        question(input_ids=[5] * 20_000, stream=stream),
        question({"stop_token_ids": list(range(269)), "min_tokens": 4}, text_input="hello", stream=stream),
    ):
        assert frail.refusal(inputs)[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("parameters", [{"n": 2}, {"priority": 1}, {"regex": "a+"}])
def test_what_this_version_cannot_do_is_unimplemented(frail, parameters):
    assert frail.refusal(question(parameters, text_input="hello"))[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize("name", ["logprobs", "timing"])
def test_an_output_this_version_cannot_give_is_unimplemented(frail, name):
    status, message = frail.refusal(question(text_input="hello", returns=(name,)))
    assert status == "UNIMPLEMENTED" and message.startswith(f"return_{name}: ")


@pytest.mark.parametrize("stream", [True, False])
def test_a_deadline_that_passes_is_unavailable(frail, stream):
    status, message = frail.refusal(question(LONG | {"deadline_ms": 50}, text_input="hello", stream=stream))
    assert (status, message) == ("UNAVAILABLE", "the deadline (deadline_ms) passed before the request finished")


def test_a_full_queue_is_unavailable(frail):
    occupant = question(LONG, input_ids=[5] * 6000, stream=True)
    status, message = frail.refusal(question(text_input="hello"), beside=occupant)
    assert status == "UNAVAILABLE"
    assert message == "the queue is full: 1 requests, max_queue_size is 1; try again later"
