"""The error tree: every leaf has a code that Triton knows, and a message fit for a user."""

from __future__ import annotations

import pytest

from fastserve import errors
from fastserve.errors import ErrorCode, FastServeError, InvalidRequest, RequestCancelled, RequestTooLong, StepFailed, first_line

TRITON_CODES = {
    "UNKNOWN",
    "INTERNAL",
    "NOT_FOUND",
    "INVALID_ARG",
    "UNAVAILABLE",
    "UNSUPPORTED",
    "ALREADY_EXISTS",
    "CANCELLED",
}
"""What ``pb_utils.TritonError`` of Triton 2.51 has."""


def all_subclasses(cls):
    return {cls} | {found for child in cls.__subclasses__() for found in all_subclasses(child)}


TREE = sorted(
    (cls for cls in all_subclasses(FastServeError) if cls.__module__ == "fastserve.errors"), key=lambda cls: cls.__name__
)
LEAVES = [cls for cls in TREE if not cls.__subclasses__()]


def test_the_tree_holds_every_error_of_the_module():
    defined = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert set(TREE) == defined
    assert len(LEAVES) > 10


@pytest.mark.parametrize("error", TREE, ids=lambda cls: cls.__name__)
def test_every_error_has_a_code_that_triton_has(error):
    assert isinstance(error.code, ErrorCode)
    assert error.code.name in TRITON_CODES
    assert error.code.value == error.code.name


@pytest.mark.parametrize("error", [leaf for leaf in LEAVES if leaf is not RequestTooLong], ids=lambda cls: cls.__name__)
def test_every_leaf_states_its_own_code_and_says_when_it_is_raised(error):
    assert "code" in vars(error)
    assert error.__doc__


def test_every_code_is_used_by_some_leaf():
    assert {leaf.code for leaf in LEAVES} == set(ErrorCode)


def test_an_invalid_request_names_field_value_and_what_is_allowed():
    error = InvalidRequest("top_p", 3, "a number above 0, at most 1")
    assert str(error) == "top_p: got 3, allowed: a number above 0, at most 1"
    assert error.field == "top_p"


def test_a_long_value_is_shortened_in_the_message():
    message = str(InvalidRequest("stop", "x" * 10_000, "less"))
    assert len(message) < 120
    assert "xxx..., allowed: less" in message


def test_of_another_librarys_error_the_first_line_is_shown_else_its_name():
    assert first_line(ValueError("\n  the shapes differ\nTraceback: ...")) == "the shapes differ"
    assert first_line(KeyError()) == "KeyError"
    assert len(first_line(ValueError("x" * 5000))) == 300


def test_a_request_that_is_too_long_is_the_clients_fault():
    assert RequestTooLong("prompt", "9 tokens", "at most 8").code is ErrorCode.INVALID_ARG


def test_cancellation_reads_as_tritons_vllm_backend_says_it():
    assert str(RequestCancelled()) == "Request was cancelled"


def test_a_failed_step_is_final_unless_it_says_otherwise():
    assert not StepFailed("broken").retryable
    assert StepFailed("no memory", retryable=True).retryable


@pytest.mark.parametrize("error", TREE, ids=lambda cls: cls.__name__)
def test_every_error_can_be_caught_as_a_fastserve_error(error):
    assert issubclass(error, FastServeError)
