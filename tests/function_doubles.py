"""Both ends of the connection between the stub and the user's process, for tests of either."""

from __future__ import annotations

import queue
import threading
import time

import numpy as np

from fastserve.functions import local_socket
from fastserve.functions.wire import Call, Decoder, Hello, encode
from fastserve.triton.function_service import FunctionService
from tests.doubles import RecordingChannel

WAIT_S = 20


class Stub:
    """What Triton's side is to a host."""

    def __init__(self, directory):
        self.socket = local_socket.connect(directory)
        self.socket.settimeout(WAIT_S)
        self._decoder = Decoder()
        self._arrived = []

    def send(self, *messages):
        self.socket.sendall(b"".join(map(encode, messages)))

    def call(self, call_id, *texts, **parameters):
        self.send(Call(call_id, texts, parameters))

    def read(self):
        """The next message, None when the host has hung up."""
        while not self._arrived:
            data = self.socket.recv(1 << 16)
            if not data:
                return None
            self._arrived += self._decoder.feed(data)
        return self._arrived.pop(0)


class Gate:
    """A function that says which texts it was called with, and returns when it is let."""

    def __init__(self):
        self.called = queue.SimpleQueue()
        self._let = queue.SimpleQueue()

    def __call__(self, model, texts):
        self.called.put(texts)
        self._let.get(timeout=WAIT_S)
        return texts

    def entered(self):
        return self.called.get(timeout=WAIT_S)

    def let(self, times=1):
        for _ in range(times):
            self._let.put(None)


def until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline


def column(*texts):
    """A text_input tensor [B, 1]."""
    return np.array([[text.encode() if isinstance(text, str) else text] for text in texts], np.object_)


def results_of(channel):
    ((tensors, final),) = channel.responses
    assert final and tensors["result"].shape == (len(tensors["result"]), 1)
    return [row[0].decode() for row in tensors["result"]]


def only_error(channel):
    assert channel.endings == 1
    (error,) = channel.errors
    return error


class SignalingChannel(RecordingChannel):
    """Says when it was ended."""

    def __init__(self, ended):
        super().__init__()
        self._ended = ended

    def send(self, tensors, *, final):
        super().send(tensors, final=final)
        self._ended.put(self)

    def fail(self, error):
        super().fail(error)
        self._ended.put(self)


class Service:
    """A service connected to the test, which plays the user's process."""

    def __init__(self, directory, **parameters):
        self.ended = queue.SimpleQueue()
        self._decoder, self._arrived = Decoder(), []
        self._stopped = False
        with local_socket.listen(directory) as listener:
            accepting = threading.Thread(target=self._accept, args=(listener,))
            accepting.start()
            own = {"socket_directory": str(directory), "takes_parameters": "true"}
            self.service = FunctionService({"model_name": "m"}, own | parameters)
            accepting.join(WAIT_S)

    def _accept(self, listener):
        self.socket, _ = listener.accept()
        self.socket.settimeout(WAIT_S)
        assert self.read() == Hello()
        self.send(Hello())

    def read(self):
        while not self._arrived:
            data = self.socket.recv(1 << 16)
            assert data, "hung up"
            self._arrived += self._decoder.feed(data)
        return self._arrived.pop(0)

    def send(self, *messages):
        self.socket.sendall(b"".join(map(encode, messages)))

    def submit(self, *texts, **parameters):
        channel = SignalingChannel(self.ended)
        self.service.submit(channel, {"text_input": column(*texts)}, parameters)
        return channel

    def await_end(self):
        return self.ended.get(timeout=WAIT_S)

    def stop(self):
        """Unload the model, once."""
        if not self._stopped:
            self._stopped = True
            self.service.stop()

    def close(self):
        self.stop()
        self.socket.close()
