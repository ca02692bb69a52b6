"""Tasks that classify texts against the transformers pipelines: the same model, the same texts, the same answers.

The sequences a task makes are run through the torch model one at a time, so that what is compared is the task alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fastserve.manifest import TokenizerSpec
from fastserve.tasks.encoding_task import EncodingInput, EncodingTask, make_task
from fastserve.text.tokenizer import Tokenizer
from tests.encoder_doubles import encoder_manifest
from tests.synthetic.tiny_encoders import LABELS, MARKERS, MAX_LENGTH, TINY_ENCODERS, save_encoder

TOLERANCE = 1e-4
STRIDE = 24

TEXTS = [
    "the film was not very good",
    "Ada Lovelace wrote a book in London.",
    "a",
    "   Marie Curie   lives\tin\nParis  ",
    "Zażółć gęślą jaźń; ça va très bien, naïve façade",
    "日本語のサーバー 我能吞下玻璃",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 e\u0301 combining 𝒳𝓎𝓏",
    "Alan Turing was married? No! (1912-1954) #42 @google",
    " ",
    "\u200b\ufeff\u00a0",
    "nothing  here   but    spaces     between",
    "to-day's don't can't I'm we'll",
]
LONG = " ".join(["the good film of London is not bad, John Smith said to Anna in Berlin 👍"] * 20)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other take most of a tiny model's time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclasses.dataclass
class Encoder:
    """One random model, its task, and the pipeline that says what is right."""

    model: Any
    reference: Any
    task: EncodingTask
    tokenizer: Any

    def logits(self, token_ids: tuple[int, ...], token_type_ids: tuple[int, ...] = ()) -> np.ndarray:
        types = {"token_type_ids": torch.tensor([token_type_ids])} if token_type_ids else {}
        with torch.inference_mode():
            return self.model(input_ids=torch.tensor([token_ids]), **types).logits[0].numpy()

    def answer(self, texts: dict[str, list[str]], spans: Any = None, **parameters: Any) -> dict[str, Any]:
        prepared = self.task.prepare(EncodingInput(texts, spans or {}, parameters), 0, 0.0)
        assert all(len(sequence.token_ids) <= MAX_LENGTH for sequence in prepared.request.sequences)
        return prepared.answer([self.logits(item.token_ids, item.token_type_ids) for item in prepared.request.sequences])

    def results(self, texts: dict[str, list[str]], spans: Any = None, **parameters: Any) -> list[Any]:
        return [json.loads(value) for value in self.answer(texts, spans, **parameters)["result"][:, 0]]


@functools.cache
def encoder(task: str, family: str, problem_type: str = "single_label", num_labels: int | None = None) -> Encoder:
    """``num_labels``: labels by number instead of the task's own."""
    labels = tuple(f"LABEL_{index}" for index in range(num_labels)) if num_labels else LABELS[task]
    kinds = {"single_label": None, "multi_label": "multi_label_classification", "regression": "regression"}
    with tempfile.TemporaryDirectory() as name:
        changes = {"num_labels": num_labels} if num_labels else {}
        directory = save_encoder(task, family, Path(name), problem_type=kinds[problem_type], **changes)
        tokenizer = Tokenizer(directory, TokenizerSpec("tokenizer.json", ()))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(transformers|torch|safetensors)\..*")
            kind = task if task == "zero-shot-classification" else "text-classification"
            reference = transformers.pipeline(kind, str(directory), device="cpu")
    manifest = encoder_manifest(
        task,
        max_length=MAX_LENGTH,
        stride=STRIDE,
        token_types="token_type_ids" in reference.tokenizer.model_input_names,
        labels=labels,
        problem_type=problem_type,
        markers=MARKERS if task == "relation-extraction" else (),
    )
    return Encoder(reference.model.eval(), reference, make_task(manifest, tokenizer), reference.tokenizer)


def assert_same(ours: Any, expected: Any) -> None:
    """Labels and everything else exactly, numbers within the tolerance."""
    if isinstance(expected, float):
        assert ours == pytest.approx(expected, abs=TOLERANCE)
    elif isinstance(expected, dict):
        assert list(ours) == list(expected)
        for name in expected:
            assert_same(ours[name], expected[name])
    elif isinstance(expected, list):
        assert len(ours) == len(expected)
        for own, other in zip(ours, expected, strict=True):
            assert_same(own, other)
    else:
        assert ours == expected


def library_windows(tokenizer: Any, *texts: str, cut: str = "only_second") -> list[Any]:
    """The token ids and types of a long text's windows, cut by transformers itself."""
    strategy = cut if len(texts) == 2 else True
    found = tokenizer(*texts, truncation=strategy, max_length=MAX_LENGTH, stride=STRIDE, return_overflowing_tokens=True)
    types = found.get("token_type_ids", [()] * len(found["input_ids"]))
    return [(tuple(ids), tuple(kinds)) for ids, kinds in zip(found["input_ids"], types, strict=True)]


# --- text classification ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TINY_ENCODERS)
def test_a_text_has_the_labels_and_scores_of_the_pipeline(family):
    model = encoder("text-classification", family)
    assert_same(model.results({"text_input": TEXTS}), model.reference(TEXTS, top_k=None))


def test_the_models_tell_the_texts_apart():
    model = encoder("text-classification", "bert")
    best = model.reference(TEXTS)
    assert len({item["label"] for item in best}) > 1
    assert len({round(item["score"], 2) for item in best}) > 5


@pytest.mark.parametrize("family", TINY_ENCODERS)
def test_a_pair_has_the_labels_and_scores_of_the_pipeline(family):
    model = encoder("text-classification", family)
    pairs = TEXTS[1:] + TEXTS[:1]
    expected = [model.reference({"text": text, "text_pair": pair}, top_k=None) for text, pair in zip(TEXTS, pairs, strict=True)]
    assert_same(model.results({"text_input": TEXTS, "text_pair": pairs}), expected)


@pytest.mark.parametrize(
    ("problem_type", "num_labels"), [("multi_label", 4), ("regression", 1), ("regression", 3), ("single_label", 1)]
)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_problem_type_means_what_it_means_to_the_pipeline(family, problem_type, num_labels):
    model = encoder("text-classification", family, problem_type, num_labels)
    assert_same(model.results({"text_input": TEXTS}), model.reference(TEXTS, top_k=None))


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("top_k", [1, 2, 50])
def test_function_and_top_k_mean_what_they_mean_to_the_pipeline(function, top_k):
    model = encoder("text-classification", "bert", "multi_label", 4)
    ours = model.results({"text_input": TEXTS}, function_to_apply=function, top_k=str(top_k))
    assert_same(ours, model.reference(TEXTS, top_k=top_k, function_to_apply=function))


@pytest.mark.parametrize("family", TINY_ENCODERS)
def test_the_label_and_score_tensors_are_the_pipelines_best(family):
    model = encoder("text-classification", family)
    tensors = model.answer({"text_input": TEXTS})
    ours = zip((label.decode() for label in tensors["label"][:, 0]), tensors["score"][:, 0].tolist(), strict=True)
    assert_same([{"label": label, "score": score} for label, score in ours], model.reference(TEXTS))


@pytest.mark.parametrize("family", TINY_ENCODERS)
def test_a_truncated_text_has_the_answer_of_the_truncating_pipeline(family):
    model = encoder("text-classification", family)
    assert_same(
        model.results({"text_input": [LONG, *TEXTS]}, truncation=True),
        model.reference([LONG, *TEXTS], truncation=True, top_k=None),
    )


@pytest.mark.parametrize("pair", [(LONG, LONG), (LONG, TEXTS[0]), (TEXTS[0], LONG), (LONG[:700], LONG)])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_a_truncated_pair_has_the_answer_of_the_truncating_pipeline(family, pair):
    model = encoder("text-classification", family)
    expected = model.reference({"text": pair[0], "text_pair": pair[1]}, truncation=True, top_k=None)
    assert_same(model.results({"text_input": [pair[0]], "text_pair": [pair[1]]}, truncation=True), [expected])


@pytest.mark.parametrize("texts", [(LONG,), (TEXTS[0], LONG)])
@pytest.mark.parametrize("family", TINY_ENCODERS)
def test_a_long_text_has_the_scores_of_its_windows_mean_logits(family, texts):
    model = encoder("text-classification", family)
    windows = library_windows(model.tokenizer, *texts)
    assert len(windows) > 2
    mean = torch.tensor(np.mean([model.logits(*window) for window in windows], axis=0))
    tensors = model.answer({name: [text] for name, text in zip(("text_input", "text_pair"), texts, strict=False)})
    assert tensors["scores"][0] == pytest.approx(mean.softmax(-1).numpy(), abs=TOLERANCE)


# --- relation extraction ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TINY_ENCODERS)
def test_a_relation_has_the_labels_and_scores_of_the_marked_text(family):
    model = encoder("relation-extraction", family)
    text = "日本 👍: Marie Curie was born in Paris, not in Berlin."
    names = [("Marie Curie", "Paris"), ("Berlin", "Marie Curie"), ("日本", "👍"), ("Berlin.", "Paris,")]
    heads, tails = ([(text.index(pair[side]), text.index(pair[side]) + len(pair[side])) for pair in names] for side in (0, 1))
    marked = []
    for head, tail in names:
        with_head = text.replace(head, f"{MARKERS[0]}{head}{MARKERS[1]}")
        marked.append(with_head.replace(tail, f"{MARKERS[2]}{tail}{MARKERS[3]}"))
    expected = model.reference(marked, top_k=None)
    assert_same(model.results({"text_input": [text] * len(names)}, {"head": heads, "tail": tails}), expected)
    assert_same(model.results({"text_input": marked}), expected)


# --- reranking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TINY_ENCODERS)
def test_a_document_has_the_score_of_the_pipeline(family):
    model = encoder("reranking", family)
    queries, documents = [TEXTS[0]] * len(TEXTS), TEXTS
    expected = [model.reference({"text": TEXTS[0], "text_pair": document})["score"] for document in documents]
    found = [item["score"] for item in model.results({"text_input": queries, "text_pair": documents})]
    assert_same(found, expected)


@pytest.mark.parametrize("function", ["sigmoid", "none"])
def test_a_long_document_has_the_score_of_its_best_window(function):
    model = encoder("reranking", "bert")
    logits = [float(model.logits(*window)[0]) for window in library_windows(model.tokenizer, TEXTS[0], LONG)]
    best = max(logits) if function == "none" else float(torch.tensor(max(logits)).sigmoid())
    tensors = model.answer({"text_input": [TEXTS[0]], "text_pair": [LONG]}, function_to_apply=function)
    assert tensors["score"][0, 0] == pytest.approx(best, abs=TOLERANCE)
    assert max(logits) - min(logits) > 100 * TOLERANCE


# --- zero-shot classification -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("family", TINY_ENCODERS)
def test_candidate_labels_have_the_order_and_scores_of_the_pipeline(family, multi_label):
    model = encoder("zero-shot-classification", family)
    labels = ["film", "politics", "日本 👍", "the river"]
    ours = model.results({"text_input": TEXTS}, candidate_labels=json.dumps(labels), multi_label=str(multi_label).lower())
    assert_same(ours, [model.reference(text, labels, multi_label=multi_label) for text in TEXTS])


@pytest.mark.parametrize("labels", ["film", "film, city ,book", "film,film"])
@pytest.mark.parametrize("template", ["This example is {}.", "{}", "{0} or not {0}?"])
def test_labels_with_commas_and_templates_mean_what_they_mean_to_the_pipeline(labels, template):
    model = encoder("zero-shot-classification", "roberta")
    ours = model.results({"text_input": TEXTS[:4]}, candidate_labels=labels, hypothesis_template=template)
    assert_same(ours, [model.reference(text, labels, hypothesis_template=template) for text in TEXTS[:4]])


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_model_without_a_label_for_entailment_is_read_as_the_pipeline_reads_it(multi_label):
    model = encoder("zero-shot-classification", "bert", num_labels=3)
    labels = ["film", "city"]
    ours = model.results({"text_input": TEXTS[:4], "candidate_labels": labels * 4}, multi_label=multi_label)
    assert_same(ours, [model.reference(text, labels, multi_label=multi_label) for text in TEXTS[:4]])


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_truncated_text_has_the_zero_shot_answer_of_the_pipeline(family):
    model = encoder("zero-shot-classification", family)
    ours = model.results({"text_input": [LONG]}, candidate_labels="film,city", truncation=True)
    assert_same(ours, [model.reference(LONG, ["film", "city"])])


def test_the_hypotheses_about_a_long_text_are_judged_by_its_windows_mean_logits():
    model = encoder("zero-shot-classification", "bert")
    labels = ["film", "city"]
    windows = [library_windows(model.tokenizer, LONG, f"This example is {label}.", cut="only_first") for label in labels]
    means = np.stack([np.mean([model.logits(*window) for window in found], axis=0) for found in windows])
    scores = torch.tensor(means[:, LABELS["zero-shot-classification"].index("entailment")]).softmax(0).numpy()
    assert min(map(len, windows)) > 2
    tensors = model.answer({"text_input": [LONG]}, candidate_labels=",".join(labels))
    assert tensors["scores"][0] == pytest.approx(scores, abs=TOLERANCE)
