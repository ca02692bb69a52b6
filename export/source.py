"""Finds and loads what is to be exported: a local folder, a GGUF file, or a hub id."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fastserve.errors import InvalidRequest, ModelNotFound, UnsupportedModel

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where a model is. ``location``: a folder or a hub id; ``gguf_file``: the file in it; ``label``: what people call it."""

    location: str
    label: str
    gguf_file: str | None = None
    is_local: bool = True

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``from_pretrained``. A local source never asks the hub; code in a checkpoint never runs."""
        arguments: dict[str, Any] = {"local_files_only": self.is_local, "trust_remote_code": False}
        return arguments | ({"gguf_file": self.gguf_file} if self.gguf_file else {})


@dataclasses.dataclass(slots=True)
class LoadedModel:
    """A source model in memory, weights once, in float32, on the CPU, in eval mode, attention "eager"."""

    source: Source
    model: Any  # transformers.PreTrainedModel
    tokenizer: Any  # transformers.PreTrainedTokenizerFast


def resolve(text: str) -> Source:
    """Say what ``text`` names. Raises ModelNotFound or UnsupportedModel; touches no network."""
    path = Path(text).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise InvalidRequest("source", text, "a folder with config.json, a .gguf file, or a hub id")
        return Source(str(path.parent), path.stem, path.name)
    if path.is_dir():
        return _resolve_directory(path)
    if not _HUB_ID.fullmatch(text) or path.suffix == ".gguf":
        raise ModelNotFound(f"{text}: no such file or folder")
    return Source(text, text, is_local=False)


def _resolve_directory(path: Path) -> Source:
    if (path / "config.json").is_file():
        return Source(str(path), path.resolve().name)
    if (path / "adapter_config.json").is_file():
        raise UnsupportedModel(f"{path} holds only an adapter: merge it into its base model first (peft: merge_and_unload)")
    files = sorted(file.name for file in path.glob("*.gguf"))
    if len(files) == 1:
        return Source(str(path), Path(files[0]).stem, files[0])
    if files:
        raise ModelNotFound(f"{path} holds {len(files)} GGUF files; name one of them: {', '.join(files)}")
    raise ModelNotFound(f"{path} holds neither config.json nor a .gguf file")


def load_config(source: Source) -> Any:
    """The model's configuration, before any weight is read. Raises ModelNotFound or UnsupportedModel."""
    try:
        config = AutoConfig.from_pretrained(source.location, **source.arguments())
    except OSError as error:
        if source.is_local:
            raise ModelNotFound(f"{source.location}: {_first_line(error)}") from error
        raise ModelNotFound(
            f"{source.location}: neither a local path nor a model the Hugging Face hub could give ({_first_line(error)}); "
            "check the spelling, the connection, and HF_TOKEN for private models"
        ) from error
    except (ValueError, KeyError, ImportError) as error:
        raise UnsupportedModel(f"{source.label}: transformers cannot read its configuration: {_first_line(error)}") from error
    if not source.gguf_file and getattr(config, "quantization_config", None):
        raise UnsupportedModel(f"{source.label}: the checkpoint is quantised; export the full-precision model it was made from")
    return config


def load(source: Source, config: Any) -> LoadedModel:
    """Read tokenizer and weights. Raises ModelNotFound or UnsupportedModel (weights missing, slow tokenizer only)."""
    tokenizer = _load_tokenizer(source)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.location,
            config=config,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            **source.arguments(),
        )
    except OSError as error:
        raise ModelNotFound(f"{source.label}: the weights cannot be read: {_first_line(error)}") from error
    except (ValueError, ImportError) as error:
        raise UnsupportedModel(f"{source.label}: {_first_line(error)}") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise UnsupportedModel(
            f"{source.label}: the checkpoint lacks weights of a {type(model).__name__} ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}); is it a fine-tune for another task?"
        )
    return LoadedModel(source, model.eval().requires_grad_(False), tokenizer)


def _load_tokenizer(source: Source) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **source.arguments())
    except OSError as error:
        raise ModelNotFound(f"{source.label}: the tokenizer cannot be read: {_first_line(error)}") from error
    except (ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise UnsupportedModel(f"{source.label}: the tokenizer cannot be loaded: {_first_line(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedModel(f"{source.label}: its tokenizer ({type(tokenizer).__name__}) has no fast version (tokenizer.json)")
    return tokenizer


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
