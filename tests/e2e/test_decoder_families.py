"""Every decoder family of the README's table through one real Triton: transformers' tokens, in a crowd and alone."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

from fastserve.tools.client import GenerateRequest
from fastserve.tools.launcher import LaunchOptions, TritonLauncher
from tests.e2e.clients import ask_all
from tests.e2e.reference import assert_equal_but_for_ties, generate
from tests.synthetic.decoder_families import FAMILIES, LONGROPE_LIMIT

CONCURRENCY = 8
NEW_TOKENS = 12
PROMPT_LENGTHS = (1, 2, 12, 13, 16, 17, 25, 36)
"""Tokens; around the windows of the families and the size of a block."""
SETTINGS = {"max_batched_tokens": "24", "max_num_seqs": "6", "kv_cache_bytes": str(1 << 20), "num_threads": "1"}
"""Prompts come in chunks beside decodes."""


@pytest.fixture(scope="module")
def family_server(decoder_exports: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonLauncher]:
    """A real Triton that serves every family under its own name."""
    repository = tmp_path_factory.mktemp("family_repository")
    for family in FAMILIES:
        shutil.copytree(decoder_exports(family).model_directory, repository / family)
        with (repository / family / "config.pbtxt").open("a") as config:
            for key, value in SETTINGS.items():
                config.write(f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n')
    with TritonLauncher(repository, LaunchOptions(ready_timeout_s=300.0)) as launcher:
        yield launcher


def prompts_for(family: str) -> list[list[int]]:
    """Random ones. Where transformers computes short contexts differently, all are longer than that."""
    rng = random.Random(family)
    beyond = LONGROPE_LIMIT if FAMILIES[family].max_model_len else 0
    return [[rng.randrange(3, 200) for _ in range(beyond + length)] for length in PROMPT_LENGTHS]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_served_with_the_tokens_of_transformers(
    family: str, family_server: TritonLauncher, decoder_sources: Callable[[str], Path]
) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(decoder_sources(family)).eval()
    prompts = prompts_for(family)
    parameters = {"temperature": 0, "max_tokens": NEW_TOKENS}
    requests = [GenerateRequest(family, input_ids=prompt, parameters=parameters) for prompt in prompts]
    crowd, alone = (ask_all(family_server.grpc_url, requests, concurrency) for concurrency in (CONCURRENCY, 1))
    assert [answer.error for answer in crowd] == [None] * len(prompts)
    assert [answer.output_ids for answer in crowd] == [answer.output_ids for answer in alone]
    expected = [generate(model, prompt, NEW_TOKENS) for prompt in prompts]
    assert_equal_but_for_ties(model, prompts, expected, [answer.output_ids for answer in crowd])
