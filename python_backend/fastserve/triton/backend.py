"""The Triton Python backend: receives requests, hands them to the engine, and returns at once."""

from __future__ import annotations

import itertools
import json
import logging
import queue
import time
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from fastserve.config import EngineConfig, parse_config
from fastserve.errors import FastServeError, RequestUnreadable
from fastserve.manifest import ModelManifest
from fastserve.triton.generation_io import TEXT_GENERATION_INPUTS, TEXT_GENERATION_OUTPUTS, missing_entries

logger = logging.getLogger(__name__)

DRAIN_S = 30.0
"""What unfinished requests get in ``finalize`` before they are answered UNAVAILABLE."""


class TritonPythonModel:
    """One model instance in its stub process. Triton calls the methods on one thread (T): ``execute`` never blocks and
    never raises; every request it receives is answered exactly once by the responder thread."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Fill in what the user's config.pbtxt leaves out: the generation contract, decoupled."""
        config = auto_complete_model_config.as_dict()
        try:
            inputs = missing_entries(config["input"], TEXT_GENERATION_INPUTS, kind="input")
            outputs = missing_entries(config["output"], TEXT_GENERATION_OUTPUTS, kind="output")
        except FastServeError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        for entry in inputs:
            auto_complete_model_config.add_input(entry)
        for entry in outputs:
            auto_complete_model_config.add_output(entry)
        auto_complete_model_config.set_max_batch_size(0)
        auto_complete_model_config.set_model_transaction_policy({"decoupled": True})
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Load, warm up, start the threads. Triton reports the model ready only after this returns."""
        _log_to_triton()
        try:
            self._start(args)
        except FastServeError as error:
            raise pb_utils.TritonModelException(str(error)) from None

    def _start(self, args: dict[str, str]) -> None:
        # Heavy imports wait until here: Triton imports this module a second time, only to complete the configuration.
        from fastserve.engine.engine_thread import EngineThread
        from fastserve.engine.loader import load_engine, load_text_generation
        from fastserve.triton.metrics import create_metrics
        from fastserve.triton.responder import Responder

        started = time.monotonic()
        directory = Path(args["model_repository"]) / args["model_version"]
        parameters = json.loads(args["model_config"]).get("parameters", {})
        config = parse_config(EngineConfig, {key: value["string_value"] for key, value in parameters.items()})
        manifest = ModelManifest.load(directory)
        engine = load_engine(directory, manifest, config, time.monotonic)
        self._task = load_text_generation(directory, manifest, config)
        self._request_ids = itertools.count()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._engine = EngineThread(engine, self._outbox, clock=time.monotonic)
        metrics = create_metrics(args["model_name"], args["model_version"], args["model_instance_name"])
        self._responder = Responder(self._outbox, self._engine.abort, metrics)
        self._engine.start()
        self._responder.start()
        logger.info("%s version %s ready in %.1f s", args["model_name"], args["model_version"], time.monotonic() - started)

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            self._accept(request)

    def _accept(self, request: Any) -> None:
        from fastserve.triton.channel import TritonChannel
        from fastserve.triton.protocol import parse_generation
        from fastserve.triton.responder import Rejected, ResponseStream

        try:
            channel = TritonChannel(request)
        except Exception:
            logger.exception("Triton gave no way to answer a request")
            return
        try:
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            item, flags = parse_generation(tensors, json.loads(request.parameters() or "{}"))
            prepared = self._task.prepare(item, next(self._request_ids), time.monotonic())
            self._outbox.put(ResponseStream(channel, prepared, flags, self._task.tokenizer))
        except FastServeError as error:
            self._outbox.put(Rejected(channel, error))
        except Exception as error:  # a bug in parsing: this request is answered, the others go on
            logger.exception("a request could not be read")
            self._outbox.put(
                Rejected(channel, RequestUnreadable(f"the request could not be read ({type(error).__name__}: {error})"))
            )
        else:
            self._engine.submit(prepared.request)

    def finalize(self) -> None:
        """Unload: stop the threads. Triton calls this when no request is in flight; should one be, it may finish."""
        self._engine.shutdown(DRAIN_S)
        self._engine.join()
        self._responder.join()


class _TritonHandler(logging.Handler):
    """Sends Python's log records to Triton's log."""

    def emit(self, record: logging.LogRecord) -> None:
        log = pb_utils.Logger
        sends = {logging.ERROR: log.log_error, logging.WARNING: log.log_warn}
        try:
            sends.get(record.levelno, log.log_info)(f"fastserve: {self.format(record)}")
        except Exception:  # a log that is gone must not end the thread that writes to it
            self.handleError(record)


def _log_to_triton() -> None:
    root = logging.getLogger("fastserve")
    if not root.handlers:
        root.addHandler(_TritonHandler())
        root.setLevel(logging.INFO)
        root.propagate = False
