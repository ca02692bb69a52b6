"""Merges a PEFT adapter (LoRA and its relatives) into the weights of its base model, before anything is exported.

Adapters are refused when they cannot be merged, or do not fit the model. The merged model must say what the model with the
adapter beside it says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastserve.errors import ModelNotFound, ProofFailed, ToolError, UnsupportedModel, first_line
from fastserve.export.source import LoadedModel, Source, load_tokenizer

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER = "default"
_TASKS = (None, "CAUSAL_LM")
"""What an adapter of a language model may call its task."""

_SAMPLE_TOKENS = 16
MERGE_TOLERANCE = 1e-3
"""Largest difference that merging may make, as a share of the logits' standard deviation."""


def check_adapter(directory: Path | None) -> None:
    """Refuse what is no adapter, before the base model is read. Raises ModelNotFound, ToolError or UnsupportedModel."""
    if directory is None:
        return
    if not (directory / ADAPTER_CONFIG).is_file():
        raise ModelNotFound(f"{directory}: not an adapter, it has no {ADAPTER_CONFIG}")
    task = getattr(_read_config(directory), "task_type", None)
    if task not in _TASKS:
        raise UnsupportedModel(f"{directory}: an adapter for {task}; text-generation takes CAUSAL_LM adapters")


def merge_adapter(loaded: LoadedModel, directory: Path) -> str | None:
    """Merge the adapter into ``loaded``, and take over its tokenizer if it brings one. Returns a remark for a person, or None.

    Raises ModelNotFound when it cannot be read, UnsupportedModel when it is of another model or cannot be merged, ProofFailed
    when merging changes the answers.
    """
    config = _read_config(directory)
    made_for = config.base_model_name_or_path  # PEFT puts the name of what it is attached to there
    wrapped = _attach(loaded, config, directory)
    before = _sample_logits(wrapped)
    try:
        merged = wrapped.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise UnsupportedModel(f"{directory}: it cannot be merged: {first_line(error)}") from error
    loaded.model = merged.eval().requires_grad_(False)
    difference = float((_sample_logits(loaded.model) - before).abs().max())
    if not difference <= MERGE_TOLERANCE * float(before.std()):
        raise ProofFailed(f"{directory}: merging the adapter changes the model's logits, by up to {difference:.3g}")
    if (directory / "tokenizer_config.json").is_file():
        loaded.tokenizer = _tokenizer_of(directory, loaded.model)
    return _remark(made_for, loaded.source)


def _read_config(directory: Path) -> Any:
    peft = _import_peft()
    try:
        return peft.PeftConfig.from_pretrained(str(directory))
    except Exception as error:  # PEFT raises whatever a damaged or unknown configuration provokes
        raise ModelNotFound(f"{directory / ADAPTER_CONFIG} cannot be read: {first_line(error)}") from error


def _import_peft() -> Any:
    try:
        import peft  # an optional extra, and slow to import
    except ImportError as error:
        raise ToolError(f"merging an adapter needs peft ({error}): pip install 'triton-fastserve[adapter]'") from error
    return peft


def _attach(loaded: LoadedModel, config: Any, directory: Path) -> Any:
    """The model with the adapter beside its weights. Every weight of the adapter must have found its place."""
    config.inference_mode = True
    misfit = _misfit(loaded, config.base_model_name_or_path, directory)
    try:
        wrapped = _import_peft().get_peft_model(loaded.model, config, adapter_name=_ADAPTER)
        if not hasattr(wrapped.base_model, "merge_and_unload"):
            raise UnsupportedModel(f"{directory}: adapters of type {_kind(config)} cannot be merged into weights")
        result = wrapped.load_adapter(str(directory), adapter_name=_ADAPTER, torch_device="cpu")
    except (ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        raise UnsupportedModel(f"{misfit}: {first_line(error)}") from error
    except UnsupportedModel:
        raise
    except Exception as error:  # every file format has exceptions of its own for a damaged file
        raise ModelNotFound(f"{directory}: its weights cannot be read: {first_line(error)}") from error
    if left_over := [*result.unexpected_keys, *result.missing_keys]:
        raise UnsupportedModel(f"{misfit}: {left_over[0]} has no counterpart")
    return wrapped.eval()


def _misfit(loaded: LoadedModel, base: str | None, directory: Path) -> str:
    made_for = f", made for {base}," if base else ""
    return f"{directory}{made_for} does not fit {loaded.source.label} ({type(loaded.model).__name__})"


def _sample_logits(model: Any) -> torch.Tensor:
    vocab_size = model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(0, vocab_size, (1, _SAMPLE_TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def _tokenizer_of(directory: Path, model: Any) -> Any:
    tokenizer = load_tokenizer(Source(str(directory), directory.name))
    if (rows := model.get_input_embeddings().weight.shape[0]) < len(tokenizer):
        raise UnsupportedModel(f"{directory}: its tokenizer has {len(tokenizer):,} tokens, the model {rows:,} embeddings")
    return tokenizer


def _remark(base: str | None, source: Source) -> str | None:
    if not base or Path(base).name == Path(source.label).name:
        return None
    return f"the adapter was made for {base}, and is merged into {source.label}"


def _kind(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))
