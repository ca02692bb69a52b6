"""What a generation_config becomes: sampling defaults the server accepts, or a sentence about what is left out."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationConfig

from fastserve.errors import UnsupportedModel
from fastserve.export.generation_settings import generation_defaults, settings_not_applied
from fastserve.tasks.sampling_parameters import parse_sampling_parameters


def settings(**values: Any) -> Any:
    make: Any = GenerationConfig
    return make(**values)


def test_settings_get_the_names_of_the_serving_contract() -> None:
    config = settings(temperature=0.7, max_new_tokens=64, min_new_tokens=8)
    assert generation_defaults(config) == {"temperature": 0.7, "max_tokens": 64, "min_tokens": 8}
    assert settings_not_applied(config) == []


@pytest.mark.parametrize(("key", "value"), [("top_p", 0.0), ("temperature", "warm"), ("repetition_penalty", -1.0)])
def test_a_value_that_the_server_would_refuse_is_refused_by_name(key: str, value: Any) -> None:
    config = settings()
    setattr(config, key, value)
    with pytest.raises(UnsupportedModel, match=rf"generation_config\.json: {key}: got"):
        generation_defaults(config)


def test_a_number_written_as_text_arrives_as_a_number() -> None:
    config = settings()
    config.temperature = "0.7"
    assert generation_defaults(config) == {"temperature": 0.7}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("no_repeat_ngram_size", 3),
        ("suppress_tokens", [5]),
        ("bad_words_ids", [[4, 5]]),
        ("num_beams", 4),
        ("forced_bos_token_id", 0),
        ("forced_eos_token_id", 1),
        ("typical_p", 0.9),
        ("a_setting_of_the_future", 2),
    ],
)
def test_a_setting_the_server_does_not_have_is_named(key: str, value: Any) -> None:
    assert settings_not_applied(settings(**{key: value})) == [f"{key}={value}"]


def test_settings_that_ask_for_nothing_are_not_named() -> None:
    assert settings_not_applied(settings(num_beams=1, no_repeat_ngram_size=0, suppress_tokens=[], eos_token_id=[1, 2])) == []


def test_a_shortest_answer_beyond_the_longest_is_left_out_and_named() -> None:
    config = settings(min_new_tokens=20)
    assert generation_defaults(config) == {}
    assert settings_not_applied(config) == ["min_new_tokens=20"]
    parse_sampling_parameters({}, generation_defaults(config))
