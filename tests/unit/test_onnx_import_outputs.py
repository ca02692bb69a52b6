"""Which output of an imported graph a task takes, and what counts as the source of an import."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastserve.errors import UnsupportedModel
from fastserve.export.padded.outputs import axes_of, choose_outputs
from fastserve.export.padded.source import names_onnx
from fastserve.manifest import TensorSpec

OF_TOKENS, OF_TEXTS = ("batch", "length", 5), ("batch", 5)


def tensor(name, shape, dtype="float32"):
    return TensorSpec(name, dtype, shape)


def chosen(task, *outputs):
    return [output.name for output in choose_outputs(Path("model.onnx"), list(outputs), task)]


def test_axes_that_follow_the_inputs_are_told_from_fixed_ones():
    assert axes_of((2, 5, 7), (3, 7, 7)) == ("batch", "length", 7)
    assert axes_of((2, 9), (3, 9)) == ("batch", 9)
    assert axes_of((10, 4), (21, 4)) == ("?", 4)
    assert axes_of((2, 5), (3, 7, 1)) == ("?",)


@pytest.mark.parametrize("task", ["token-classification", "fill-mask"])
def test_tasks_of_tokens_take_rows_of_tokens(task):
    assert chosen(task, tensor("pooled", OF_TEXTS), tensor("hidden", OF_TOKENS)) == ["hidden"]


@pytest.mark.parametrize("task", ["text-classification", "reranking", "zero-shot-classification", "relation-extraction"])
def test_tasks_of_texts_take_a_row_for_each_text(task):
    assert chosen(task, tensor("hidden", OF_TOKENS), tensor("scores", OF_TEXTS)) == ["scores"]


def test_logits_go_before_others_of_their_shape():
    assert chosen("text-classification", tensor("pooled", OF_TEXTS), tensor("logits", OF_TEXTS)) == ["logits"]
    assert chosen("text-classification", tensor("pooled", OF_TEXTS), tensor("logits", OF_TOKENS)) == ["pooled"]


def test_answers_have_two_ends_in_two_outputs_or_in_two_columns():
    ends = [tensor("end_logits", ("batch", "length")), tensor("start_logits", ("batch", "length"))]
    assert chosen("question-answering", tensor("hidden", OF_TOKENS), *ends) == ["start_logits", "end_logits"]
    assert chosen("question-answering", tensor("logits", ("batch", "length", 2))) == ["logits"]
    with pytest.raises(UnsupportedModel, match="start_logits and end_logits"):
        chosen("question-answering", ends[0], tensor("logits", OF_TOKENS))


def test_embeddings_of_texts_go_before_those_of_tokens_and_those_before_a_pooler():
    sentence, hidden, pooler = (
        tensor("sentence_embedding", OF_TEXTS),
        tensor("last_hidden_state", OF_TOKENS),
        tensor("pooler_output", OF_TEXTS),
    )
    assert chosen("feature-extraction", pooler, hidden, sentence) == ["sentence_embedding"]
    assert chosen("feature-extraction", pooler, hidden) == ["last_hidden_state"]
    assert chosen("feature-extraction", pooler) == ["pooler_output"]


@pytest.mark.parametrize(
    "output",
    [
        tensor("logits", OF_TEXTS, "int64"),
        tensor("logits", ("batch", "length")),
        tensor("logits", (1, 5)),
        tensor("logits", ("batch", "?")),
    ],
)
def test_an_output_that_does_not_fit_is_shown_with_what_is_allowed(output):
    with pytest.raises(
        UnsupportedModel, match=r"model.onnx: none of its outputs is one for reranking \(logits .*allowed: \[batch, n\]"
    ):
        chosen("reranking", output)


def test_onnx_files_and_folders_with_nothing_but_onnx_are_imported(tmp_path):
    assert names_onnx("somewhere/model.onnx")
    assert not names_onnx("org/model") and not names_onnx("model.gguf") and not names_onnx(str(tmp_path))
    (tmp_path / "model.onnx").touch()
    (tmp_path / "config.json").touch()
    assert names_onnx(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    assert not names_onnx(str(tmp_path))
    assert names_onnx(str(tmp_path / "model.onnx"))
