"""Keeps the libraries' chatter off the terminal while an export runs; errors still come through as exceptions."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

_CHATTY_LOGGERS = ("torch", "torch.onnx", "torch.export", "transformers", "onnxscript", "onnx_ir", "huggingface_hub")
_CHATTY_MODULES = (
    r"torch\..*",
    r"transformers\..*",
    r"onnxscript\..*",
    r"onnx_ir\..*",
    r"gguf\..*",
    r"peft\..*",
    "copyreg",
    r"huggingface_hub\..*",
)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Raise the loggers to ERROR, ignore warnings issued by the libraries' own modules, hide progress bars; then restore."""
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    gguf_loader: Any = modeling_gguf_pytorch_utils  # draws a bar that no setting hides
    gguf_bar = gguf_loader.tqdm
    levels = [logger.level for logger in loggers]
    hub_logging: Any = transformers_logging
    bars = hub_logging.is_progress_bar_enabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        hub_logging.disable_progress_bar()
        gguf_loader.tqdm = functools.partial(gguf_bar, disable=True)
        with warnings.catch_warnings():
            for module in _CHATTY_MODULES:
                warnings.filterwarnings("ignore", module=module)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        gguf_loader.tqdm = gguf_bar
        if bars:
            hub_logging.enable_progress_bar()
