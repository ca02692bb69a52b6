"""A model's config.pbtxt, read with Triton's own protocol buffers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastserve.errors import ToolError


def parse_model_config(text: str) -> Any:
    """Triton's ``ModelConfig``. Raises ImportError without the client package, ValueError for what is no configuration."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise ValueError(str(error)) from None


def read_model_config(folder: Path) -> dict[str, Any]:
    """The config.pbtxt of a model's folder as JSON has it. Raises OSError, ImportError, or ValueError that names the file."""
    from google.protobuf import json_format

    file = _config_file(folder)
    try:
        config = parse_model_config(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    found: dict[str, Any] = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return found


def parameters_of_version(version: Path) -> dict[str, str]:
    """The parameters in the config.pbtxt of the model that a version folder is of, none without one. Raises as
    :func:`read_model_config`."""
    from fastserve.triton.services import string_parameters

    folder = version.parent
    return string_parameters(read_model_config(folder)) if _config_file(folder).is_file() else {}


def settings_of_version(version: Path) -> dict[str, str]:
    """As :func:`parameters_of_version`. Raises ToolError for a file that is no configuration or cannot be read."""
    try:
        return parameters_of_version(version)
    except ImportError as error:
        raise ToolError(f"{_config_file(version.parent)} cannot be read ({error}); pip install tritonclient protobuf") from None
    except (OSError, ValueError) as error:
        raise ToolError(str(error)) from None


def _config_file(folder: Path) -> Path:
    from fastserve.export.options import CONFIG_FILE

    return folder / CONFIG_FILE
