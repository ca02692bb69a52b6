"""Feature extraction with embeddings given by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fastserve.errors import InvalidRequest, ManifestError, StepFailed
from fastserve.tasks.encoding_task import EncodingInput
from fastserve.tasks.feature_extraction import FeatureExtraction
from tests.encoder_doubles import encoder_manifest, loaded_at_once, word_level

WORDS = loaded_at_once(word_level())


def embed(texts, outputs, *, parameters=None, **manifest):
    """The embeddings when the graph gives ``outputs``, one row for each window."""
    task = FeatureExtraction(encoder_manifest("feature-extraction", **manifest), WORDS)
    prepared = task.prepare(EncodingInput({"text_input": texts}, parameters=parameters or {}), 7, 0.0)
    assert len(prepared.request.sequences) == len(outputs)
    answered = prepared.answer([np.array(row, np.float32) for row in outputs])
    assert list(answered) == ["embedding"]
    assert answered["embedding"].dtype == np.float32
    return answered["embedding"]


def test_a_text_has_the_embedding_of_its_sequence():
    assert embed(["a", "b c"], [[3, 4], [1, 2]]).tolist() == [[3, 4], [1, 2]]


@pytest.mark.parametrize(
    ("manifest", "parameters", "length"),
    [(False, {}, 5), (True, {}, 1), (False, {"normalize": "true"}, 1), (True, {"normalize": False}, 5)],
)
def test_the_manifest_says_whether_embeddings_have_length_one_unless_the_client_does(manifest, parameters, length):
    (row,) = embed(["a"], [[3, 4]], normalize=manifest, parameters=parameters)
    assert row == pytest.approx(np.array([3, 4]) * length / 5)


def test_an_embedding_of_length_zero_stays_as_it_is():
    assert embed(["a"], [[0, 0]], normalize=True).tolist() == [[0, 0]]


def test_the_windows_of_a_long_text_count_by_the_tokens_they_show():
    # [CLS], four words, [SEP]: windows of four, four and two words; then a text of one window
    rows = embed(["a b c d e f g h", "a"], [[1, 0], [0, 1], [5, 5], [7, 7]], max_length=6, stride=1)
    assert rows == pytest.approx(np.array([[(4 * 1 + 2 * 5) / 10, (4 * 1 + 2 * 5) / 10], [7, 7]]))


def test_a_long_text_has_length_one_after_its_windows_are_averaged():
    rows = embed(["a b c d e f g h"], [[30, 0], [0, 40]], max_length=6, stride=0, normalize=True)
    assert rows == pytest.approx(np.array([[0.6, 0.8]]))


def test_a_truncated_text_has_the_embedding_of_its_first_window():
    assert embed(["a b c d e f g h"], [[1, 2]], max_length=6, parameters={"truncation": True}).tolist() == [[1, 2]]


def test_a_text_without_words_has_an_embedding():
    assert embed(["  "], [[1, 2]]).tolist() == [[1, 2]]


@pytest.mark.parametrize(("texts", "parameters", "field"), [([""], {}, "text_input"), (["a"], {"normalize": 2}, "normalize")])
def test_what_cannot_be_understood_is_refused_by_name(texts, parameters, field):
    with pytest.raises(InvalidRequest) as caught:
        embed(texts, [], parameters=parameters)
    assert caught.value.field == field


def test_a_manifest_of_another_kind_is_refused():
    with pytest.raises(ManifestError, match=r"^encoder.output: got 'token', allowed: sequence"):
        embed(["a"], [], output="token")


def test_an_embedding_that_is_no_number_fails_the_request():
    with pytest.raises(StepFailed, match="not finite"):
        embed(["a"], [[1, np.inf]])
