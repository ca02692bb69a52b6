"""Finds and loads what is to be exported: a local folder, a GGUF file, or a hub id."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers.utils
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fastserve.errors import FastServeError, InvalidRequest, ModelNotFound, UnsupportedModel, first_line
from fastserve.export.gguf_guards import check_gguf_keys, check_gguf_tensors, read_gguf
from fastserve.export.options import HUB_ID

_NOT_WEIGHTS = re.compile(
    r"rotary_emb\.inv_freq$"  # computed from the configuration
    r"|(^|\.)(attn|attention)\.(masked_bias|bias)$"  # GPT-2 and GPT-NeoX: the causal mask, once saved as a buffer
    r"|(^|\.)position_ids$"
)
"""Tensors of old checkpoints that hold no weights. Whatever else a model has no place for is a reason to refuse it."""

_POINTER = b"version https://git-lfs"


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
    if not HUB_ID.fullmatch(text) or path.suffix == ".gguf":
        raise ModelNotFound(f"{text}: no such file or folder")
    return Source(text, text, is_local=False)


def _resolve_directory(path: Path) -> Source:
    if (path / "config.json").is_file():
        return Source(str(path), path.resolve().name)
    if (path / "adapter_config.json").is_file():
        raise UnsupportedModel(f"{path} holds only an adapter: export its base model and name this folder with --adapter")
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
            raise ModelNotFound(f"{source.location}: {first_line(error)}") from error
        raise ModelNotFound(
            f"{source.location}: neither a local path nor a model the Hugging Face hub could give ({first_line(error)}); "
            "check the spelling, the connection, and HF_TOKEN for private models"
        ) from error
    except (ValueError, KeyError, ImportError, StrictDataclassError) as error:
        raise UnsupportedModel(f"{source.label}: transformers cannot read its configuration: {first_line(error)}") from error
    if not source.gguf_file and getattr(config, "quantization_config", None):
        raise UnsupportedModel(f"{source.label}: the checkpoint is quantised; export the full-precision model it was made from")
    return config


def load(source: Source, config: Any) -> LoadedModel:
    """Read tokenizer and weights. Raises ModelNotFound or UnsupportedModel (weights missing or left over, slow tokenizer)."""
    reader = read_gguf(Path(source.location) / source.gguf_file) if source.gguf_file else None
    if reader is not None:
        check_gguf_keys(reader, config)
    check_generation_config(source)
    tokenizer = load_tokenizer(source)
    model, info = load_weights(source, config, AutoModelForCausalLM)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    check_weights(source, model, info["missing_keys"], set(info["unexpected_keys"]) - tied)
    if reader is not None:
        check_gguf_tensors(reader, model)
    return LoadedModel(source, model.eval().requires_grad_(False), tokenizer)


def check_weights(source: Source, model: Any, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Refuse weights that the checkpoint lacks (they would be random), and weights that found no place."""
    if names := sorted(missing):
        raise UnsupportedModel(
            f"{source.label}: the checkpoint lacks weights of a {type(model).__name__} ({_some(names)}); "
            "is it a fine-tune for another task?"
        )
    if left_over := [name for name in sorted(unexpected) if not _NOT_WEIGHTS.search(name)]:
        raise UnsupportedModel(
            f"{source.label}: a {type(model).__name__} of this configuration has no place for {len(left_over)} of the "
            f"checkpoint's weights ({_some(left_over)}); config.json and the weights do not belong together"
        )


def load_weights(source: Source, config: Any, auto_class: Any) -> tuple[Any, dict[str, Any]]:
    """(model, loading info). ``auto_class``: of transformers, for the head. Raises ModelNotFound or UnsupportedModel."""
    try:
        loaded: Any = auto_class.from_pretrained(
            source.location,
            config=config,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            **source.arguments(),
        )
    except (ValueError, ImportError) as error:
        raise UnsupportedModel(f"{source.label}: {first_line(error)}") from error
    except RuntimeError as error:
        if "size mismatch" in str(error) or "mismatched" in str(error):
            raise UnsupportedModel(
                f"{source.label}: the shapes of the weights are not those of config.json ({first_line(error)})"
            ) from error
        raise unreadable(source, "the weights", error) from error
    except FastServeError:
        raise
    except Exception as error:  # every file format has exceptions of its own for a damaged file
        raise unreadable(source, "the weights", error) from error
    return loaded[0], loaded[1]


def check_generation_config(source: Source) -> None:
    """transformers ignores a generation_config.json that it cannot parse, and with it the ids that end a text.

    Raises ModelNotFound instead.
    """
    if source.gguf_file:
        return
    name = "generation_config.json"
    if (settings := read_json(source, name, dict)) is None:
        return
    try:
        make: Any = GenerationConfig
        make(**settings)
    except (ValueError, TypeError, AttributeError) as error:
        raise unreadable(source, name, error) from error


def read_json(source: Source, name: str, kind: type[dict[str, Any]] | type[list[Any]]) -> Any:
    """A JSON file that lies beside the weights; None without it. Raises ModelNotFound when it cannot be read, or holds no
    ``kind``."""
    missing_is_fine = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    hub: Any = transformers.utils.hub
    path = hub.cached_file(source.location, name, local_files_only=source.is_local, **missing_is_fine)
    try:
        content = None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
        if content is not None and not isinstance(content, kind):
            raise TypeError(f"it holds a {type(content).__name__}, allowed: a {kind.__name__}")
    except (ValueError, TypeError, RecursionError, OSError) as error:
        raise unreadable(source, name, error) from error
    return content


def load_tokenizer(source: Source) -> Any:
    """The fast tokenizer. Raises ModelNotFound or UnsupportedModel."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **source.arguments())
    except OSError as error:
        raise unreadable(source, "the tokenizer", error) from error
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UnsupportedModel(f"{source.label}: the tokenizer cannot be loaded: {first_line(error)}{_hint(source)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedModel(f"{source.label}: its tokenizer ({type(tokenizer).__name__}) has no fast version (tokenizer.json)")
    return tokenizer


def is_pointer(file: Path) -> bool:
    """Whether Git LFS has left ``file`` at what it points to."""
    with file.open("rb") as content:
        return content.read(len(_POINTER)) == _POINTER


def unreadable(source: Source, what: str, error: BaseException) -> ModelNotFound:
    """``what``: the file that ``error`` is about."""
    return ModelNotFound(f"{source.label}: {what} cannot be read: {first_line(error)}{_hint(source)}")


def _hint(source: Source) -> str:
    """What the user may have forgotten, when files of a local source are only pointers to the real ones."""
    folder = Path(source.location)
    for file in sorted(folder.iterdir()) if source.is_local and folder.is_dir() else ():
        if file.is_file() and is_pointer(file):
            return f" ({file.name} is only a pointer to the file: run `git lfs pull` in the folder)"
    return ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
