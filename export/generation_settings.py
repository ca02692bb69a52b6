"""The source's generation_config: what becomes the model's sampling defaults, and what no server setting stands for."""

from __future__ import annotations

from typing import Any

from fastserve.errors import InvalidRequest, UnsupportedModel
from fastserve.tasks.sampling_parameters import PARAMETERS, parse_sampling_parameters

_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
}
"""generation_config's names -> the sampling parameters of the serving contract."""

_NOT_DECODING = frozenset(
    {
        "bos_token_id",
        "cache_implementation",
        "chat_template",
        "decoder_start_token_id",
        "do_sample",
        "eos_token_id",
        "max_length",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "pad_token_id",
        "return_dict_in_generate",
        "transformers_version",
        "use_cache",
    }
)
"""Settings that are read elsewhere, or that change no token: a request's ``max_tokens`` takes the place of max_length, its
temperature that of do_sample."""

_ONE_IS_NEUTRAL = ("num_", "penalty", "_p", "_scale", "return_sequences")
"""Parts of the names of settings that change nothing at 1."""


def _is_neutral(key: str, value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return not value
    return value in (0, "", [], {}) or (value == 1 and any(part in key for part in _ONE_IS_NEUTRAL))


def generation_defaults(generation_config: Any) -> dict[str, float]:
    """Sampling defaults that the model's authors set; keys they left alone are absent.

    Raises UnsupportedModel naming a value that the server would not accept.
    """
    found = {name: getattr(generation_config, key, None) for key, name in _NAMES.items()}
    found = {name: value for name, value in found.items() if value is not None}
    if _asks_too_much(found):
        del found["min_tokens"]
    try:
        parsed = parse_sampling_parameters(found, {})
    except InvalidRequest as error:
        raise UnsupportedModel(f"generation_config.json: {error}") from None
    return {name: parsed[name] for name in found}


def settings_not_applied(generation_config: Any) -> list[str]:
    """What else the authors set that changes what is generated, as "key=value"."""
    mapped = {name: getattr(generation_config, key, None) for key, name in _NAMES.items()}
    lost = {"min_new_tokens": mapped["min_tokens"]} if _asks_too_much(mapped) else {}
    for key, value in generation_config.to_diff_dict().items():
        read_elsewhere = key in _NAMES or key in _NOT_DECODING or key.startswith("_")
        if not read_elsewhere and (value is not None if key.startswith("forced_") else not _is_neutral(key, value)):
            lost[key] = value
    return [f"{key}={value}" for key, value in sorted(lost.items())]


def _asks_too_much(found: dict[str, Any]) -> bool:
    """Whether the shortest answer is longer than the longest: then no request could leave both alone."""
    longest, shortest = found.get("max_tokens"), found.get("min_tokens")
    limit = PARAMETERS["max_tokens"].default if longest is None else longest
    return isinstance(shortest, int) and isinstance(limit, int) and shortest > limit
