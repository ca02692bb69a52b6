"""What the files of a sentence-transformers model say about making embeddings from the last hidden state."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastserve.errors import UnsupportedModel
from fastserve.export.options import POOLINGS
from fastserve.export.source import Source, read_json, unreadable

_LENGTH_FILES = tuple(
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta")
)
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Truth values of an older 1_Pooling/config.json -> what newer ones call it in ``pooling_mode``."""


@dataclasses.dataclass(frozen=True, slots=True)
class SentenceSettings:
    """``pooling``: None when no file says. ``max_length``: tokens after which the source cuts texts, if it does."""

    pooling: str | None = None
    normalize: bool = False
    max_length: int | None = None
    notes: tuple[str, ...] = ()


def sentence_settings(source: Source, tokenizer: Any) -> SentenceSettings:
    """Read modules.json and what it names; all is left alone without it. Raises UnsupportedModel naming a module or a mode of
    pooling that is not supported, ModelNotFound for a file that cannot be read."""
    modules = read_json(source, "modules.json", list)
    if modules is None:
        return SentenceSettings()
    try:
        kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
        paths = [str(module["path"]) for module in modules]
    except (KeyError, TypeError) as error:
        raise unreadable(source, "modules.json", ValueError(f"a module without type and path ({error})")) from None
    if kinds not in (["Transformer"], ["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UnsupportedModel(
            f"{source.label}: modules.json lists {', '.join(kinds)}; only Transformer, Pooling, Normalize can be represented"
        )
    lengths: dict[str, Any] = next((found for name in _LENGTH_FILES if (found := read_json(source, name, dict)) is not None), {})
    if lengths.get("do_lower_case") and tokenizer.tokenize("A") != tokenizer.tokenize("a"):
        raise UnsupportedModel(f"{source.label}: texts are to be lower case (do_lower_case), which its tokenizer does not do")
    pooling = _pooling(source, paths[1]) if "Pooling" in kinds else None
    return SentenceSettings(pooling, "Normalize" in kinds, lengths.get("max_seq_length"), _notes(source))


def _pooling(source: Source, folder: str) -> str:
    settings = read_json(source, f"{folder}/config.json", dict) or {}
    modes = [name for key, name in _MODES.items() if settings.get(key)]
    if (named := settings.get("pooling_mode")) is not None:
        modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        kind = " and ".join(map(str, modes)) or "of an unknown kind"
        raise UnsupportedModel(f"{source.label}: pooling {kind} cannot be represented, only {' or '.join(POOLINGS)}")
    return str(modes[0])


def _notes(source: Source) -> tuple[str, ...]:
    settings = read_json(source, "config_sentence_transformers.json", dict) or {}
    prompts = {name: text for name, text in (settings.get("prompts") or {}).items() if text}
    if not prompts:
        return ()
    shown = ", ".join(f"{name}: {text!r}" for name, text in sorted(prompts.items()))
    return (f"the model's prompts are not applied, put them in front of the texts ({shown})",)
