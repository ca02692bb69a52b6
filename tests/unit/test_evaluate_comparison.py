"""Asking for everything, and telling whether two models are the same."""

from __future__ import annotations

import math
import threading

import pytest

from fastserve.errors import ToolError
from fastserve.tools.client import RequestFailed, ServerUnreachable
from fastserve.tools.encoder_client import EncoderRequest, Outputs
from fastserve.tools.evaluation.comparison import Tolerance, compare, default_tolerance
from fastserve.tools.evaluation.prediction import Predictions, ServedModel, predict
from fastserve.tools.evaluation.sentence_pairs import SentencePair, SentencePairs
from fastserve.tools.evaluation.text_classification import LabelledText, LabelScores, TextClassification
from tests.encoder_client_double import FakeEncoderClient, ranked

ITEMS = 40


def texts(count: int = ITEMS) -> TextClassification:
    return TextClassification(
        [LabelledText(f"t:{index}", EncoderRequest({"text_input": str(index)}), "even") for index in range(count)]
    )


def parity(request: EncoderRequest) -> Outputs:
    odd = int(request.texts["text_input"]) % 2
    return ranked({"even": 0.25 + (1 - odd) / 2, "odd": 0.25 + odd / 2})


def test_predictions_are_in_the_order_of_the_items_however_many_are_asked_at_once() -> None:
    meeting = threading.Barrier(4, timeout=20)

    def answer(request: EncoderRequest) -> Outputs:
        meeting.wait()  # passes only when four are in flight
        return parity(request)

    client, advanced = FakeEncoderClient(answer), []
    found = predict(texts(), ServedModel(client, "m", 4), lambda: advanced.append(1))
    assert [value.label for value in found.values] == ["even", "odd"] * (ITEMS // 2)
    assert (client.models, len(advanced), found.truncated) == ({"m"}, ITEMS, frozenset())


def test_an_item_may_take_several_requests() -> None:
    task = SentencePairs([SentencePair("t:1", "1 0", "0 1", 0.0), SentencePair("t:2", "1 0", "1 0", 5.0)], {})
    client = FakeEncoderClient(lambda request: {"embedding": [float(part) for part in request.texts["text_input"].split()]})
    assert predict(task, client, lambda: None).values == [0.0, 1.0]


def test_a_request_that_fails_ends_the_evaluation_with_the_items_place() -> None:
    def refuse(request: EncoderRequest) -> Outputs:
        if request.texts["text_input"] == "7":
            raise RequestFailed("INVALID_ARG", "text_input: too long")
        return parity(request)

    with pytest.raises(ToolError, match=r"t:7: INVALID_ARG: text_input: too long"):
        predict(texts(), FakeEncoderClient(refuse), lambda: None)


def test_an_answer_of_the_wrong_kind_names_the_item_too() -> None:
    with pytest.raises(ToolError, match=r"t:0: INTERNAL: not the answer of a text classifier"):
        predict(texts(), FakeEncoderClient(lambda request: {"embedding": [1.0]}), lambda: None)


def test_a_server_that_goes_away_is_said_as_it_is() -> None:
    def gone(request: EncoderRequest) -> Outputs:
        raise ServerUnreachable("no answer from here")

    with pytest.raises(ServerUnreachable, match=r"^no answer from here$"):
        predict(texts(), FakeEncoderClient(gone), lambda: None)


def test_items_the_source_cut_off_are_remembered() -> None:
    client = FakeEncoderClient(
        lambda request: parity(request) | ({"truncated": [True]} if request.texts["text_input"] == "3" else {})
    )
    assert predict(texts(), client, lambda: None).truncated == {3}


# --- comparing --------------------------------------------------------------------------------------------------------


def scores(*best: tuple[str, float]) -> Predictions:
    return Predictions([LabelScores(label, {label: score}) for label, score in best], frozenset())


def test_equal_models_differ_nowhere() -> None:
    same = scores(("a", 0.9), ("b", 0.8))
    found = compare(texts(2), same, same, default_tolerance("fp32", numeric=False))
    assert (found.differing, found.share, found.worst_score, found.within_tolerance) == (0, 0, 0, True)


def test_one_other_answer_is_too_much_in_fp32_and_may_be_tolerated() -> None:
    served, source = scores(("a", 0.9), ("b", 0.8), ("a", 0.7)), scores(("a", 0.9), ("a", 0.8), ("a", 0.7))
    found = compare(texts(3), served, source, default_tolerance("fp32", numeric=False))
    assert (found.differing, found.differing_answers, found.places, found.within_tolerance) == (1, 1, ("t:1",), False)
    assert compare(texts(3), served, source, Tolerance(share=0.34, score=1e-4)).within_tolerance


def test_in_fp32_scores_that_move_are_a_difference_and_in_int8_they_may() -> None:
    served, source = scores(("a", 0.9), ("b", 0.8)), scores(("a", 0.9), ("b", 0.802))
    exact = compare(texts(2), served, source, default_tolerance("fp32", numeric=False))
    assert (exact.differing, exact.differing_answers, exact.within_tolerance) == (1, 0, False)
    assert exact.worst_score == pytest.approx(0.002)
    assert compare(texts(2), served, source, default_tolerance("int8", numeric=False)).differing == 0


def test_bare_numbers_are_held_to_a_distance_in_int8() -> None:
    pairs = SentencePairs([SentencePair(f"t:{index}", "", "", 0.0) for index in range(2)], {})
    served, source = Predictions([0.5, 0.4], frozenset()), Predictions([0.52, 0.5], frozenset())
    assert compare(pairs, served, source, default_tolerance("int8", numeric=True)).differing == 1


def test_a_score_that_is_no_number_differs() -> None:
    served, source = scores(("a", 0.5), ("a", math.nan), ("a", 0.5)), scores(*[("a", 0.5)] * 3)
    found = compare(texts(3), served, source, default_tolerance("fp32", numeric=False))
    assert found.differing == 1 and not found.within_tolerance and math.isnan(found.worst_score)


def test_what_the_source_cut_off_is_not_compared_and_nothing_compared_is_no_success() -> None:
    served = scores(("a", 0.9), ("b", 0.8))
    source = Predictions(scores(("a", 0.9), ("a", 0.8)).values, frozenset({1}))
    found = compare(texts(2), served, source, default_tolerance("fp32", numeric=False))
    assert (found.compared, found.truncated, found.within_tolerance) == (1, 1, True)
    everything = Predictions(source.values, frozenset({0, 1}))
    assert not compare(texts(2), served, everything, Tolerance(share=1.0, score=1.0)).within_tolerance


def test_the_numbers_for_programs_have_no_infinity() -> None:
    same = scores(("a", 0.9))
    found = compare(texts(1), same, same, default_tolerance("int8", numeric=False)).as_json()
    assert (found["tolerance"], found["score_tolerance"], found["within_tolerance"]) == (0.05, None, True)
