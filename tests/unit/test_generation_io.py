"""Completing a model configuration from the contract, and refusing one that contradicts it."""

from __future__ import annotations

import pytest

from fastserve.errors import ConfigError
from fastserve.triton.generation_io import TEXT_GENERATION_INPUTS, TEXT_GENERATION_OUTPUTS
from fastserve.triton.tensor_io import missing_entries


def entry(spec, **changes):
    return {"name": spec.name, "data_type": spec.data_type, "dims": list(spec.dims), "optional": spec.optional} | changes


def test_an_empty_configuration_gets_the_whole_contract():
    entries = missing_entries([], TEXT_GENERATION_INPUTS, kind="input")
    assert [made["name"] for made in entries] == [spec.name for spec in TEXT_GENERATION_INPUTS]
    assert all(made["optional"] for made in entries)
    assert all("optional" not in made for made in missing_entries([], TEXT_GENERATION_OUTPUTS, kind="output"))


def test_what_is_there_is_not_added_again():
    given = [entry(spec) for spec in TEXT_GENERATION_INPUTS[1:]]
    assert [made["name"] for made in missing_entries(given, TEXT_GENERATION_INPUTS, kind="input")] == ["text_input"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_type": "TYPE_INT32"}, r"input text_input: got TYPE_INT32 \[1\] in config.pbtxt, allowed: TYPE_STRING \[1\]"),
        ({"dims": [2]}, r"input text_input: got TYPE_STRING \[2\]"),
        ({"optional": False}, r"input text_input: got optional: false in config.pbtxt, allowed: optional: true"),
        ({"name": "prompt"}, r"input prompt: unknown in config.pbtxt, allowed: text_input, input_ids"),
    ],
)
def test_an_entry_that_contradicts_the_contract_is_refused_by_name(changes, words):
    with pytest.raises(ConfigError, match=words):
        missing_entries([entry(TEXT_GENERATION_INPUTS[0], **changes)], TEXT_GENERATION_INPUTS, kind="input")
