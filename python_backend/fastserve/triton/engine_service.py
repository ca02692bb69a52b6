"""What every model served by an engine has: the threads, and the way of a request between them."""

from __future__ import annotations

import abc
import json
import logging
import queue
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic

from fastserve.config import TASK_PARAMETER
from fastserve.engine.engine_thread import EngineThread, RequestT, ServedEngine
from fastserve.errors import ConfigError, RequestUnreadable
from fastserve.manifest import ModelManifest
from fastserve.triton.channel import TritonChannel
from fastserve.triton.long_texts import LongTexts
from fastserve.triton.metrics import create_metrics
from fastserve.triton.request_reader import Received, RequestReader
from fastserve.triton.responder import Channel, Rejected, Responder, ResponseStream
from fastserve.triton.response_pace import ResponsePace
from fastserve.triton.services import task_of

logger = logging.getLogger(__name__)

DRAIN_S = 30.0
"""What unfinished requests get in ``stop`` before they are answered UNAVAILABLE."""


class EngineService(abc.ABC, Generic[RequestT]):
    """Implements ``services.Service``. ``accept`` is called on Triton's thread (T); every request is answered exactly once by
    the responder thread."""

    def __init__(
        self, args: Mapping[str, str], engine: ServedEngine[RequestT], *, max_queue_size: int, max_stream_delay_ms: int = 0
    ) -> None:
        """Starts the threads. ``args``: Triton's ``initialize`` arguments. The others: see the configuration."""
        outbox = queue.SimpleQueue[Any]()
        self._engine: EngineThread[RequestT] = EngineThread(engine, outbox, clock=time.monotonic)
        metrics = create_metrics(args["model_name"], args["model_version"], args["model_instance_name"])
        self._responder = Responder(outbox, self._engine.abort, metrics, ResponsePace(max_stream_delay_ms / 1000))
        self.long_texts = LongTexts()
        self.outbox: queue.SimpleQueue[Any] = outbox
        """What the responder reads."""
        self._reader: RequestReader[RequestT] = RequestReader(
            self.read, outbox, self._engine.submit, self.long_texts, max_waiting=max_queue_size
        )
        self._engine.start()
        self._responder.start()

    @abc.abstractmethod
    def read(self, received: Received, request_id: int) -> tuple[ResponseStream, RequestT]:
        """What a request asks of the responder and of the engine. May be called by two threads at once. Raises
        FastServeError."""

    def accept(self, request: Any) -> None:
        try:
            channel = TritonChannel(request)
        except Exception:
            logger.exception("Triton gave no way to answer a request")
            return
        try:
            received = _receive(request, channel)
        except Exception as error:  # Triton gave us what it should have refused
            logger.exception("a request could not be received")
            self.outbox.put(Rejected(channel, RequestUnreadable(error)))
        else:
            self._reader.take(received)

    def stop(self) -> None:
        """Should a request be in flight, it may finish within DRAIN_S."""
        self.long_texts.wait()  # what is still read goes to the engine
        self._engine.shutdown(DRAIN_S)
        self._engine.join()
        self._responder.join()
        self.long_texts.stop()


def _receive(request: Any, channel: Channel) -> Received:
    """Take everything that is needed out of one of Triton's requests."""
    text = request.parameters()
    return Received(
        channel,
        {tensor.name(): tensor.as_numpy() for tensor in request.inputs()},
        json.loads(text) if text not in ("", "{}") else {},  # most requests have none
        tuple(request.requested_output_names()),
        time.monotonic(),
    )


def load_manifest(args: Mapping[str, str], parameters: Mapping[str, str]) -> tuple[Path, ModelManifest]:
    """The version folder of a model and its manifest. Raises ManifestError, or ConfigError when config.pbtxt names another
    task than the one the model was exported for."""
    directory = Path(args["model_repository"]) / args["model_version"]
    manifest = ModelManifest.load(directory)
    if manifest.task != (task := task_of(parameters)):
        raise ConfigError(
            f"{TASK_PARAMETER}: got {task!r} in config.pbtxt, allowed: {manifest.task!r}, for which {directory} was exported"
        )
    return directory, manifest


def count_instances(args: Mapping[str, str]) -> int:
    """Instances of this model on this machine, at least 1."""
    groups = json.loads(args["model_config"]).get("instance_group", [])
    return max(1, sum(int(group.get("count", 1)) for group in groups))
