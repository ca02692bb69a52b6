"""Beam search on real exports: the answers are those of transformers' ``generate``, token for token and in its order."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
import transformers

from fastserve.config import EngineConfig
from fastserve.core.request import Request, SamplingParams
from fastserve.engine.loader import load_engine
from fastserve.export.options import ExportOptions
from fastserve.export.text_generation import export_model
from fastserve.manifest import ModelManifest
from tests.doubles import run_to_end
from tests.synthetic.tiny_models import TINY_CONFIGS, VOCAB_SIZE, save_model

MAX_TOKENS = 14
STOPS = tuple(range(0, VOCAB_SIZE, 12))
"""Ids that end an answer: a random model seldom draws one of two."""
SETTINGS = list(itertools.product((2, 4), (-1.0, 0.0, 1.0, 2.0), (False, True, "never")))


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen3"])
def served(request, tmp_path_factory):
    """A random model in transformers, and an engine of its export."""
    root = tmp_path_factory.mktemp("beams")
    source = save_model(TINY_CONFIGS[request.param](), root / "source")
    export_model(str(source), ExportOptions(output=root / "repository", name="tiny"))
    directory = root / "repository" / "tiny" / "1"
    config = EngineConfig(kv_cache_bytes=2**24, max_num_seqs=16, max_batched_tokens=32)
    engine = load_engine(directory, ModelManifest.load(directory), config, time.monotonic)
    return transformers.AutoModelForCausalLM.from_pretrained(source).eval(), engine


def expected(model, prompt, num_beams, length_penalty, early_stopping, **settings):
    ids = torch.tensor([prompt])
    with torch.no_grad():
        rows = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            eos_token_id=list(STOPS),
            pad_token_id=STOPS[0],
            **settings,
        )
    return [ended(row) for row in rows[:, len(prompt) :].tolist()]


def ended(row):
    """A row up to the first id that ends it; what follows is padding."""
    place = next((place for place, token in enumerate(row) if token in STOPS), len(row))
    return row[: place + 1]


def request_of(number, prompt, num_beams, length_penalty, early_stopping, **settings):
    params = SamplingParams(
        n=num_beams,
        num_beams=num_beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        max_tokens=MAX_TOKENS,
        temperature=0.0,
        stop_token_ids=frozenset(STOPS),
        **settings,
    )
    return Request(number, tuple(prompt), params)


def prompt_of(number):
    generator = torch.Generator().manual_seed(number)
    return torch.randint(3, VOCAB_SIZE, (3 + 7 * (number % 6),), generator=generator).tolist()


def answers(outcome, count):
    return [outcome.answer(index).token_ids for index in range(count)]


def test_all_answers_equal_generates_whatever_the_settings_and_all_in_one_crowd(served):
    model, engine = served
    requests = [request_of(number, prompt_of(number), *settings) for number, settings in enumerate(SETTINGS)]
    outcomes = run_to_end(engine, requests)
    lengths = set()
    for number, settings in enumerate(SETTINGS):
        found = answers(outcomes[number], settings[0])
        assert found == expected(model, prompt_of(number), *settings), settings
        lengths |= set(map(len, found))
    assert len(lengths) > 3 and MAX_TOKENS in lengths


def test_penalties_and_a_least_length_act_as_in_generate(served):
    model, engine = served
    requests = [request_of(number, prompt_of(number), 3, 1.0, False, repetition_penalty=1.4, min_tokens=5) for number in range(6)]
    outcomes = run_to_end(engine, requests)
    for number in range(6):
        wanted = expected(model, prompt_of(number), 3, 1.0, False, repetition_penalty=1.4, min_new_tokens=5)
        assert answers(outcomes[number], 3) == wanted
