"""The Triton Python backend: hands requests to the service of the model's task and returns at once."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import triton_python_backend_utils as pb_utils

from fastserve.errors import FastServeError
from fastserve.triton.services import check_complete, contract_of, load_service, string_parameters
from fastserve.triton.tensor_io import complete_config

logger = logging.getLogger(__name__)


class TritonPythonModel:
    """One model instance in its stub process. Triton calls the methods on one thread (T): ``execute`` never blocks and
    never raises; every request it receives is answered exactly once, later."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Fill in what the user's config.pbtxt leaves out: the contract of its task."""
        try:
            complete_config(auto_complete_model_config, contract_of(string_parameters(auto_complete_model_config.as_dict())))
        except FastServeError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Load, warm up, start the threads. Triton reports the model ready only after this returns."""
        _log_to_triton()
        started = time.monotonic()
        try:
            config = json.loads(args["model_config"])
            check_complete(config)
            # Heavy imports wait until here: Triton imports this module a second time, only to complete the configuration.
            self._service = load_service(args, string_parameters(config))
        except FastServeError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        logger.info("%s version %s ready in %.1f s", args["model_name"], args["model_version"], time.monotonic() - started)

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            self._service.accept(request)

    def finalize(self) -> None:
        """Unload: stop the threads. Triton calls this when no request is in flight."""
        self._service.stop()


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
