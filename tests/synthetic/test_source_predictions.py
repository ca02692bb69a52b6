"""What a source model says: the answers a served model is held against, from tiny models of real families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModel, AutoModelForQuestionAnswering, AutoTokenizer

from fastserve.errors import InvalidRequest, ModelNotFound, UnsupportedModel
from fastserve.export import source_predictions
from fastserve.export.source_predictions import SourceModel, with_markers
from fastserve.export.source_question_answering import Windows, answer_question
from fastserve.manifest import EncoderSpec
from tests.synthetic.tiny_encoders import LABELS, MARKERS, MAX_LENGTH, add_sentence_transformers_files, save_encoder

TEXT = "Ada Curie lives in London , not in Paris"
LONG = " ".join(["Ada lives in London"] * 60)
FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert", "modernbert")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("sources")

    def make(task: str, family: str = "bert", **changes: Any) -> Path:
        path = root / f"{task}-{family}-{len(changes)}"
        return path if path.exists() else save_encoder(task, family, path, **changes)

    return make


def ask(
    model: SourceModel, *texts: str, names: tuple[str, ...] = ("text_input", "text_pair"), **parameters: Any
) -> dict[str, Any]:
    return model.answer(dict(zip(names, texts, strict=False)), {}, (), parameters)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_has_a_label_and_its_characters(folder, family: str) -> None:
    found = ask(
        source_predictions.load(str(folder("token-classification", family)), "token-classification"), TEXT, ignore_labels="[]"
    )
    words = [TEXT[start:end].strip() for start, end in zip(found["start"], found["end"], strict=True)]
    assert "".join(words) == TEXT.replace(" ", "")
    assert set(found["label"]) <= set(LABELS["token-classification"])
    assert all(0 < score <= 1 for score in found["score"]) and "truncated" not in found


def test_a_text_longer_than_the_model_is_cut_off_and_says_so(folder) -> None:
    for family in ("bert", "roberta"):
        model = source_predictions.load(str(folder("token-classification", family)), "token-classification")
        found = ask(model, LONG, ignore_labels="[]")
        assert found["truncated"] == [True] and len(found["label"]) == MAX_LENGTH - 2
        assert "truncated" not in ask(model, LONG, ignore_labels="[]", truncation=True)


@pytest.mark.parametrize("texts", [(TEXT,), (TEXT, "Ada works for Acme")])
def test_a_classifier_gives_all_labels_best_first_and_the_scores_in_their_order(folder, texts: tuple[str, ...]) -> None:
    path = folder("text-classification")
    found = ask(source_predictions.load(str(path), "text-classification"), *texts)
    ranked = json.loads(found["result"][0])
    expected = logits(path, *texts).softmax(-1).tolist()
    assert found["scores"] == pytest.approx(expected, abs=1e-6)
    assert [entry["score"] for entry in ranked] == sorted(found["scores"], reverse=True)
    assert ranked[0]["label"] == found["label"][0] == LABELS["text-classification"][int(np.argmax(expected))]


def test_score_functions_and_top_k_are_the_requests(folder) -> None:
    path = folder("text-classification")
    model = source_predictions.load(str(path), "text-classification")
    found = ask(model, TEXT, function_to_apply="none", top_k=1)
    assert found["scores"] == pytest.approx(logits(path, TEXT).tolist(), abs=1e-5)
    assert len(json.loads(found["result"][0])) == 1
    with pytest.raises(InvalidRequest, match=r"multi_label: got True, allowed: with a source model to compare, deadline_ms"):
        ask(model, TEXT, multi_label=True)


def logits(path: Path, *texts: str) -> torch.Tensor:
    """[num_labels], computed without a pipeline."""
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.inference_mode():
        row: torch.Tensor = model(**AutoTokenizer.from_pretrained(path)(*texts, return_tensors="pt")).logits[0]
    return row


def test_relations_get_their_markers_or_bring_them(folder) -> None:
    path = folder("relation-extraction")
    model = source_predictions.load(str(path), "relation-extraction")
    spans = {"head": (0, 9), "tail": (19, 25)}
    marked = f"{MARKERS[0]}Ada Curie{MARKERS[1]} lives in {MARKERS[2]}London{MARKERS[3]}{TEXT[25:]}"
    assert with_markers(TEXT, spans, MARKERS) == marked
    assert model.answer({"text_input": TEXT}, spans, (), {}) == ask(model, marked)
    assert ask(model, marked)["scores"] != ask(model, TEXT)["scores"]


def test_markers_of_spans_side_by_side_and_in_the_other_order_do_not_cross() -> None:
    assert with_markers("ab", {"head": (1, 2), "tail": (0, 1)}, ("<", ">", "[", "]")) == "[a]<b>"


def test_zero_shot_labels_are_ranked(folder) -> None:
    model = source_predictions.load(str(folder("zero-shot-classification")), "zero-shot-classification")
    found = model.answer({"text_input": TEXT}, {}, ("city", "film"), {})
    result = json.loads(found["result"][0])
    assert sorted(result["labels"]) == ["city", "film"] and sum(result["scores"]) == pytest.approx(1)
    assert model.answer({"text_input": LONG}, {}, ("city", "film"), {})["truncated"] == [True]
    several = json.loads(model.answer({"text_input": TEXT}, {}, ("city", "film"), {"multi_label": True})["result"][0])
    assert sum(several["scores"]) != pytest.approx(1)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings_are_pooled_as_the_model_says(folder, tmp_path: Path, pooling: str) -> None:
    path = save_encoder("feature-extraction", "bert", tmp_path / "m")
    add_sentence_transformers_files(path, pooling=pooling)
    model: Any = AutoModel.from_pretrained(path).eval()
    with torch.inference_mode():
        hidden = model(**AutoTokenizer.from_pretrained(path)(TEXT, return_tensors="pt")).last_hidden_state[0]
    expected = (hidden[0] if pooling == "cls" else hidden.mean(0)).tolist()
    source = source_predictions.load(str(path), "feature-extraction")
    assert ask(source, TEXT, normalize=False)["embedding"] == pytest.approx(expected, abs=1e-5)
    assert np.linalg.norm(ask(source, TEXT)["embedding"]) == pytest.approx(1)


def test_embeddings_are_pooled_as_the_served_models_are_where_the_model_does_not_say(folder) -> None:
    path = str(folder("feature-extraction"))
    unknown, mean, first = (
        ask(source_predictions.load(path, "feature-extraction", served), TEXT)["embedding"]
        for served in (None, *(EncoderSpec(128, 32, "sequence", pooling=pooling) for pooling in ("mean", "cls")))
    )
    assert unknown == mean != first


def test_markers_are_the_served_models_where_the_tokenizer_does_not_say(folder) -> None:
    path = str(folder("text-classification"))
    served = EncoderSpec(128, 32, "sequence", markers=("paris", "berlin", "film", "food"))
    model = source_predictions.load(path, "relation-extraction", served)
    spans = {"head": (0, 9), "tail": (19, 25)}
    assert model.answer({"text_input": TEXT}, spans, (), {}) == ask(model, with_markers(TEXT, spans, served.markers))


# --- question answering -----------------------------------------------------------------------------------------------


def test_the_best_span_of_a_short_context_is_found_by_trying_all(folder) -> None:
    path = folder("question-answering")
    model: Any = AutoModelForQuestionAnswering.from_pretrained(path).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    tokens = tokenizer("who lives in London", TEXT, return_tensors="pt")
    with torch.inference_mode():
        output = model(**tokens)
    encoding = tokens.encodings[0]
    allowed = [0, *(index for index, owner in enumerate(encoding.sequence_ids) if owner == 1)]
    start, end = (rows[0, allowed].double().softmax(-1) for rows in (output.start_logits, output.end_logits))
    spans = [
        (float(start[first] * end[last]), encoding.offsets[allowed[first]][0], encoding.offsets[allowed[last]][1])
        for first in range(1, len(allowed))
        for last in range(first, min(first + 3, len(allowed)))
    ]
    (answer,) = answer_question(Windows(model, tokenizer, MAX_LENGTH, 32), "who lives in London", TEXT, max_answer_length=3)
    score, begin, stop = max(spans)
    assert TEXT[answer.start : answer.end] == answer.answer
    assert answer.start <= begin and stop <= answer.end  # grown to whole words
    assert answer.score >= score - 1e-9  # equal answers are added up


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_long_contexts_are_read_to_their_end_and_the_null_answer_competes(folder, family: str) -> None:
    model = source_predictions.load(str(folder("question-answering", family)), "question-answering")
    names = ("question", "context")
    found = ask(model, "who lives", f"{LONG} Turing", names=names, top_k=2000, handle_impossible_answer=True)
    assert "" in found["answer"] and "truncated" not in found
    assert found["score"] == sorted(found["score"], reverse=True)
    assert any("Turing" in answer for answer in found["answer"])
    assert len({answer.lower() for answer in found["answer"]}) == len(found["answer"])
    assert "" not in ask(model, "who lives", LONG, names=names, top_k=2000)["answer"]


@pytest.mark.parametrize("length", [40, 90, 120])
def test_beside_a_long_question_a_window_still_moves_on(folder, length: int) -> None:
    model = source_predictions.load(str(folder("question-answering")), "question-answering")
    question = "where " * length
    found = ask(model, question, f"{LONG} Turing", names=("question", "context"), top_k=2000)
    assert any("Turing" in answer for answer in found["answer"])


def test_a_question_that_leaves_no_room_is_refused_by_name(folder) -> None:
    model = source_predictions.load(str(folder("question-answering")), "question-answering")
    with pytest.raises(InvalidRequest, match=r"^question: .* leaves its context room in 128 tokens"):
        ask(model, "where " * 130, TEXT, names=("question", "context"))


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_base_model_gets_an_untrained_head_that_is_the_same_every_time(folder) -> None:
    path = str(folder("feature-extraction"))
    with pytest.raises(
        UnsupportedModel, match=r"lacks weights of a BertForTokenClassification \(classifier.bias, classifier.weight\)"
    ):
        source_predictions.load(path, "token-classification")
    one, other = (source_predictions.load(path, "token-classification", labels=("O", "B-X")) for _ in range(2))
    assert one.labels == ("O", "B-X")
    assert "no weights for" in one.notes[0].lower() and "random" in one.notes[0]
    assert ask(one, TEXT, ignore_labels="[]") == ask(other, TEXT, ignore_labels="[]")


def test_a_base_model_of_a_task_without_labels_gets_a_head_too(folder) -> None:
    model = source_predictions.load(str(folder("fill-mask")), "question-answering", labels=())
    assert "qa_outputs" in model.notes[0]
    assert ask(model, "who lives", TEXT, names=("question", "context"))["answer"]
    assert source_predictions.load(str(folder("fill-mask")), "feature-extraction", labels=()).notes == ()


def test_a_base_model_with_a_head_of_another_size_gets_a_new_one(folder) -> None:
    path = str(folder("token-classification"))
    model = source_predictions.load(path, "token-classification", labels=("O", "B-X"))
    assert model.labels == ("O", "B-X") and model.notes
    assert source_predictions.load(path, "token-classification", labels=LABELS["token-classification"]).notes == ()


def test_a_folder_that_is_not_there_is_said_so() -> None:
    with pytest.raises(ModelNotFound, match="no such file or folder"):
        source_predictions.load("./nowhere/at/all", "token-classification")
