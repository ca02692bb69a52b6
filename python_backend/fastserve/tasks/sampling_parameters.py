"""The sampling parameters a client may send: names, types, ranges, defaults. One table, used for parsing and for messages.

Values come from a JSON object or from Triton's request parameters, where numbers and truth values may arrive as strings.
Names and defaults are vLLM's ``SamplingParams``; a model's own generation_config overrides the defaults.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from fastserve.errors import InvalidRequest
from fastserve.tasks.guided_decoding import CHOICE_ALLOWED, JSON_ALLOWED, REGEX_ALLOWED, read_choice, read_json_guide, read_regex
from fastserve.text.guidance import GUIDES

MAX_STOP_TOKEN_IDS = 1024
MAX_ANSWERS = 128
"""Answers that one request may ask for."""
MAX_BEAMS = 32
MAX_LOGPROBS = 20
"""Likeliest tokens that may be asked for at each position: vLLM's own limit."""

_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")

GREEDY_BELOW = 1e-5
"""A temperature below this is greedy: dividing logits by it would overflow."""


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: how a value is read (raising ValueError when it cannot be), what is allowed, and its default."""

    read: Callable[[Any], Any]
    allowed: str
    default: Any


def whole_number(low: int, high: int | None = None) -> Callable[[Any], int]:
    """A reader of whole numbers from ``low`` to ``high``."""

    def read(value: Any) -> int:
        if isinstance(value, str):
            if not _WHOLE.fullmatch(value.strip()):
                raise ValueError
            value = int(float(value)) if "." in value else int(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != math.floor(value):
            raise ValueError
        if value < low or (high is not None and value > high):
            raise ValueError
        return int(value)

    return read


def _real(low: float, high: float = math.inf, *, above: bool = False) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = float(value)
        if not math.isfinite(number) or not low <= number <= high or (above and number == low):
            raise ValueError
        return number

    return read


def read_truth(value: Any) -> bool:
    """True or False from a bool, 0 or 1, or their words. Raises ValueError."""
    word = str(value).strip().lower()
    if word not in ("true", "1", "false", "0"):
        raise ValueError
    return word in ("true", "1")


def _texts(value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or len(texts) > 64 or not all(isinstance(text, str) and text for text in texts):
        raise ValueError
    return tuple(texts)


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 256:
        raise ValueError
    return value


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > MAX_STOP_TOKEN_IDS:
        raise ValueError
    read = whole_number(0)
    return tuple(read(item) for item in value)


def _messages(value: Any) -> tuple[dict[str, Any], ...]:
    good = (
        isinstance(value, list) and value and all(isinstance(turn, dict) and isinstance(turn.get("role"), str) for turn in value)
    )
    if not good or not all(isinstance(turn.get("content"), str) or _calls_tools(turn) for turn in value):
        raise ValueError
    return tuple(value)


def _calls_tools(turn: Mapping[str, Any]) -> bool:
    """Whether a turn without words is one that calls tools."""
    return turn.get("content") is None and isinstance(turn.get("tool_calls"), list) and bool(turn["tool_calls"])


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ValueError
    return tuple(value)


def _early_stopping(value: Any) -> bool | str:
    return "never" if value == "never" else read_truth(value)


_TRUTH = "true or false"

PARAMETERS: dict[str, Parameter] = {
    "n": Parameter(whole_number(1, MAX_ANSWERS), f"a whole number from 1 to {MAX_ANSWERS}", 1),
    "best_of": Parameter(whole_number(1, MAX_ANSWERS), f"a whole number from 1 to {MAX_ANSWERS}, at least n", None),
    "num_beams": Parameter(whole_number(1, MAX_BEAMS), f"a whole number from 1 to {MAX_BEAMS}", 1),
    "length_penalty": Parameter(_real(-10.0, 10.0), "a number from -10 to 10", 1.0),
    "early_stopping": Parameter(_early_stopping, 'true, false or "never"', False),
    "max_tokens": Parameter(whole_number(1), "a whole number, at least 1", 16),
    "min_tokens": Parameter(whole_number(0), "a whole number, at least 0", 0),
    "temperature": Parameter(_real(0.0, 100.0), "a number from 0 (greedy) to 100", 1.0),
    "top_p": Parameter(_real(0.0, 1.0, above=True), "a number above 0, at most 1", 1.0),
    "top_k": Parameter(whole_number(-1), "a whole number; -1 or 0 for all", 0),
    "min_p": Parameter(_real(0.0, 1.0), "a number from 0 to 1", 0.0),
    "presence_penalty": Parameter(_real(-2.0, 2.0), "a number from -2 to 2", 0.0),
    "frequency_penalty": Parameter(_real(-2.0, 2.0), "a number from -2 to 2", 0.0),
    "repetition_penalty": Parameter(_real(0.01, 100.0), "a number from 0.01 to 100", 1.0),
    "seed": Parameter(whole_number(-(2**63), 2**64 - 1), "a whole number of at most 64 bits", None),
    "stop": Parameter(_texts, "a non-empty string or a list of at most 64 of them", ()),
    "stop_token_ids": Parameter(_ids, f"a list of at most {MAX_STOP_TOKEN_IDS} token ids", ()),
    "bad_words": Parameter(_texts, "a non-empty string or a list of at most 64 of them", ()),
    "ignore_eos": Parameter(read_truth, _TRUTH, False),
    "include_stop_str_in_output": Parameter(read_truth, _TRUTH, False),
    "skip_special_tokens": Parameter(read_truth, _TRUTH, True),
    "logprobs": Parameter(whole_number(0, MAX_LOGPROBS), f"a whole number from 0 to {MAX_LOGPROBS}", None),
    "prompt_logprobs": Parameter(whole_number(0, MAX_LOGPROBS), f"a whole number from 0 to {MAX_LOGPROBS}", None),
    "stream_interval": Parameter(whole_number(1, 10**6), "a whole number from 1 to 1000000", None),
    "deadline_ms": Parameter(whole_number(1, 10**10), "a whole number of milliseconds from 1 to 10000000000", None),
    "truncate_prompt_tokens": Parameter(whole_number(1), "a whole number, at least 1", None),
    "priority": Parameter(whole_number(-100, 100), "a whole number from -100 (the most urgent) to 100", 0),
    "tenant": Parameter(_name, "a string of at most 256 characters", ""),
    "cache_salt": Parameter(_name, "a string of at most 256 characters", ""),
    "messages": Parameter(_messages, 'a non-empty list of {"role": string, "content": string}', None),
    "tools": Parameter(_tools, "a list of JSON objects", ()),
    "json": Parameter(read_json_guide, JSON_ALLOWED, None),
    "regex": Parameter(read_regex, REGEX_ALLOWED, None),
    "choice": Parameter(read_choice, CHOICE_ALLOWED, None),
}

ALIASES = {"min_length": "min_tokens"}

IGNORED = frozenset({"timeout", "sequence_id", "sequence_start", "sequence_end", "triton_enable_empty_final_response"})
"""Request parameters that are Triton's own business."""


def parse_sampling_parameters(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of :data:`PARAMETERS` with its value; null means the default.

    ``defaults``: the model's own, by name. Raises InvalidRequest naming the key.
    """
    parsed = {name: defaults.get(name, parameter.default) for name, parameter in PARAMETERS.items()}
    for key, value in values.items():
        name = ALIASES.get(key, key)
        if name not in PARAMETERS:
            if name not in IGNORED:
                raise InvalidRequest(key, value, f"a known sampling parameter: {', '.join(PARAMETERS)}")
        elif value is not None:
            try:
                parsed[name] = PARAMETERS[name].read(value)
            except (ValueError, OverflowError):
                raise InvalidRequest(key, value, PARAMETERS[name].allowed) from None
    if parsed["num_beams"] > 1:
        _check_beams(parsed, values.get("temperature"))
    if parsed["temperature"] < GREEDY_BELOW:
        parsed["temperature"] = 0.0
    parsed["top_k"] = max(parsed["top_k"], 0)
    if parsed["num_beams"] == 1:
        _check_answers(parsed)
    if parsed["min_tokens"] > parsed["max_tokens"]:
        raise InvalidRequest("min_tokens", parsed["min_tokens"], f"at most max_tokens ({parsed['max_tokens']})")
    return parsed


def _check_beams(parsed: dict[str, Any], temperature: Any) -> None:
    """``temperature``: the client's own; a model's default does not count, because beams draw nothing."""
    num_beams = parsed["num_beams"]
    if parsed["n"] > num_beams:
        raise InvalidRequest("n", parsed["n"], f"at most num_beams ({num_beams})")
    if temperature is not None and parsed["temperature"] >= GREEDY_BELOW:
        raise InvalidRequest("temperature", temperature, "0 when num_beams is above 1: beams draw nothing")
    parsed["temperature"] = 0.0
    for name in ("best_of", "logprobs", *GUIDES):
        if parsed[name] is not None:
            raise InvalidRequest(name, parsed[name], "no value when num_beams is above 1")


def _check_answers(parsed: Mapping[str, Any]) -> None:
    n, best_of = parsed["n"], parsed["best_of"]
    if best_of is not None and best_of < n:
        raise InvalidRequest("best_of", best_of, f"at least n ({n})")
    if (best_of or n) > 1 and parsed["temperature"] == 0.0:
        name = "n" if n > 1 else "best_of"
        raise InvalidRequest(name, parsed[name], "1 when temperature is 0: greedy answers are all the same")
