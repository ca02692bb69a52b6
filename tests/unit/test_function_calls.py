"""A user's function and the queue in front of it: batches, answers, and every way a function can go wrong."""

from __future__ import annotations

import json
import queue
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.errors import ConfigError, ErrorCode
from fastserve.functions.call_queue import CallQueue, WaitingCall
from fastserve.functions.function import ServedFunction
from fastserve.functions.wire import Call, Failure, Result


def served(function, model=None):
    return ServedFunction(function, model)


def call(call_id, *texts, **parameters):
    return Call(call_id, texts, parameters)


def failure(answers):
    """The message of the failure that all ``answers`` are."""
    assert {type(answer) for answer in answers} == {Failure}
    assert {answer.code for answer in answers} == {ErrorCode.INTERNAL}
    (message,) = {answer.message for answer in answers}
    return message


# --- the function -----------------------------------------------------------------------------------------------------


def test_each_call_gets_the_results_of_its_own_texts():
    function = served(lambda model, texts: [{model: text} for text in texts], model="echo")
    answers = function.run([call(7, "a", "b"), call(8), call(9, "c")])
    assert answers == [Result(7, ('{"echo": "a"}', '{"echo": "b"}')), Result(8, ()), Result(9, ('{"echo": "c"}',))]


def test_a_function_that_takes_parameters_gets_the_calls_in_a_dictionary_of_its_own():
    def function(model, texts, parameters):
        parameters["seen"] = True
        return [parameters] * len(texts)

    first = call(1, "a", top_k=3)
    assert json.loads(served(function).run([first])[0].results[0]) == {"top_k": 3, "seen": True}
    assert first.parameters == {"top_k": 3}


@pytest.mark.parametrize(
    ("function", "takes"),
    [
        (lambda model, texts: texts, False),
        (lambda model, texts, limit=3: texts, False),
        (lambda *anything: anything[1], False),
        (lambda model, texts, parameters: texts, True),
        (lambda model, texts, parameters=None: texts, True),
        (lambda model, texts, *, parameters: texts, True),
        (max, False),
    ],
)
def test_whether_a_function_takes_parameters_is_told_by_their_name(function, takes):
    assert served(function).takes_parameters == takes


async def unawaited(model, texts):
    return texts


def yielding(model, texts):
    yield from texts


@pytest.mark.parametrize(
    "function",
    [None, "predict", lambda texts: texts, lambda model, texts, options: texts, lambda: None, unawaited, yielding],
)
def test_what_cannot_be_called_with_a_model_and_texts_is_refused_before_anything_starts(function):
    with pytest.raises(ConfigError, match=r"^inference: got .*, allowed: a function \(model, texts\)"):
        served(function)


class Tensor:
    """Of torch and its like: all of them have ``tolist``."""

    def __init__(self, values):
        self._values = values

    def tolist(self):
        return self._values


@pytest.mark.parametrize(
    "results",
    [
        (1.5, [1, 2]),
        np.array([[1.5, 2.5], [3.5, 4.5]], np.float32),
        Tensor([1, 2]),
        [{"score": np.float32(0.5), "index": np.int64(3)}, [np.array([1, 2]), Tensor(1.0)]],
    ],
    ids=["tuple", "array", "tensor", "numbers inside"],
)
def test_numbers_and_arrays_of_numpy_and_its_like_are_json(results):
    (answer,) = served(lambda model, texts: results).run([call(1, "a", "b")])
    plain = [json.loads(text) for text in answer.results]
    assert len(plain) == 2
    if isinstance(results, list):
        assert plain == [{"score": 0.5, "index": 3}, [[1, 2], 1.0]]


def test_an_exception_fails_its_batch_with_its_type_and_message_and_its_traceback_stays_in_the_log(caplog):
    def function(model, texts):
        raise ValueError("no\n  such label")

    message = failure(served(function).run([call(1, "a"), call(2, "b")]))
    assert message == "the function function raised ValueError: no such label"
    assert "Traceback" in caplog.text and "such label" in caplog.text


@pytest.mark.parametrize(("error", "words"), [(SystemExit(3), "SystemExit: 3"), (KeyboardInterrupt(), "KeyboardInterrupt")])
def test_a_function_cannot_end_its_thread(error, words):
    def function(model, texts):
        raise error

    assert words in failure(served(function).run([call(1, "a")]))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_or_too_many_results_fail_the_batch_with_both_numbers(count):
    answers = served(lambda model, texts: ["x"] * count).run([call(1, "a"), call(2, "b")])
    assert f"returned {count} results for 2 texts" in failure(answers)


@pytest.mark.parametrize("results", [None, "ab", {"a": 1, "b": 2}, 3, np.float32(1)])
def test_what_is_no_list_fails_the_batch(results):
    answers = served(lambda model, texts: results).run([call(1, "a"), call(2, "b")])
    assert "returned what is no list" in failure(answers)


CIRCLE: list[object] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize("bad", [..., {1, 2}, float("nan"), b"bytes", {(1, 2): 3}, CIRCLE, "\ud800"], ids=repr)
def test_a_result_that_is_no_json_fails_its_own_call_only(bad):
    good, wrong = served(lambda model, texts: ["fine", bad]).run([call(1, "a"), call(2, "b")])
    assert good == Result(1, ('"fine"',))
    assert "returned a result that is no JSON value" in failure([wrong])


class Unreadable:
    """A tensor without data, for one."""

    def tolist(self):
        raise RuntimeError("no data")


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def test_a_result_whose_own_code_fails_is_a_failure_and_costs_no_other_call():
    good, wrong = served(lambda model, texts: ["fine", {"score": Unreadable()}]).run([call(1, "a"), call(2, "b")])
    assert good == Result(1, ('"fine"',))
    assert "no JSON value (no data)" in failure([wrong])


def test_an_exception_that_cannot_be_shown_is_a_failure_too():
    def function(model, texts):
        raise Speechless

    assert "raised Speechless: it cannot say why" in failure(served(function).run([call(1, "a")]))


def test_a_function_may_change_the_list_of_texts_and_still_owes_a_result_for_each():
    def function(model, texts):
        texts.pop()
        return list(texts)

    assert "returned 1 results for 2 texts" in failure(served(function).run([call(1, "a"), call(2, "b")]))


def test_a_message_is_short_and_can_be_sent_whatever_the_exception_says():
    def function(model, texts):
        raise RuntimeError("x" * 10_000 + "\ud800")

    message = failure(served(function).run([call(1, "a")]))
    assert len(message) <= 1000 and message.encode()


# --- the queue --------------------------------------------------------------------------------------------------------


def queue_of(*calls, batch_size=4):
    waiting = CallQueue(batch_size)
    assert waiting.put([WaitingCall("origin", item) for item in calls])
    return waiting


def taken(waiting):
    return [item.call.call_id for item in waiting.take()]


def test_a_batch_is_the_oldest_call_and_those_after_it_that_fit():
    waiting = queue_of(call(1, "a"), call(2, "b", "c"), call(3, "d", "e"), call(4, "f"), call(5, "g"))
    assert taken(waiting) == [1, 2, 4]  # 3 does not fit beside them
    assert taken(waiting) == [3, 5]


def test_calls_with_other_parameters_are_another_batch():
    waiting = queue_of(call(1, "a", k=1), call(2, "b", k=1.0), call(3, "c", k=1), call(4, "d", k=True), call(5, "e"))
    assert [taken(waiting) for _ in range(4)] == [[1, 3], [2], [4], [5]]


def test_a_call_larger_than_a_batch_is_taken_alone():
    assert taken(queue_of(call(1, *"abcdef"), call(2, "g"))) == [1]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=30), st.integers(1, 6))
def test_every_call_is_taken_once_and_nobody_waits_while_a_later_one_leads_a_batch(sizes, batch_size):
    calls = [call(index, *"x" * size, kind=kind) for index, (size, kind) in enumerate(sizes)]
    waiting = queue_of(*calls, batch_size=batch_size)
    batches = []
    while len(waiting):
        batches.append(waiting.take())
    assert sorted(item.call.call_id for batch in batches for item in batch) == list(range(len(calls)))
    leaders = [batch[0].call.call_id for batch in batches]
    assert leaders == sorted(leaders)
    for batch in batches:
        assert len({item.call.parameters["kind"] for item in batch}) == 1
        assert len(batch) == 1 or sum(len(item.call.texts) for item in batch) <= batch_size


def test_a_dropped_call_is_never_taken_and_dropping_it_again_is_nothing():
    waiting = queue_of(call(1, "a"), call(2, "b"))
    waiting.drop("origin", 1)
    waiting.drop("origin", 1)
    waiting.drop("somebody else", 2)
    assert taken(waiting) == [2]


def test_the_calls_of_one_origin_are_dropped_together():
    waiting = queue_of(call(1, "a"), call(2, "b"))
    waiting.put([WaitingCall("other", call(1, "c"))])
    waiting.drop_all("origin")
    (item,) = waiting.take()
    assert (item.origin, item.call) == ("other", call(1, "c"))


def test_closing_hands_back_what_waits_and_ends_every_taker():
    waiting = queue_of(call(1, "a"), call(2, "b"))
    assert [item.call.call_id for item in waiting.close()] == [1, 2]
    assert waiting.take() is None
    assert not waiting.put([WaitingCall("origin", call(3, "c"))])
    assert waiting.close() == []


def test_a_taker_that_waits_is_woken_by_a_call_and_by_the_end():
    waiting, batches = CallQueue(4), queue.SimpleQueue()
    taker = threading.Thread(target=lambda: [batches.put(waiting.take()) for _ in range(2)])
    taker.start()
    waiting.put([WaitingCall("origin", call(1, "a"))])
    assert [item.call.call_id for item in batches.get(timeout=10)] == [1]
    waiting.close()
    assert batches.get(timeout=10) is None
    taker.join(10)
