"""fastserve::SegmentMean against float64, bit against bit with itself, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from onnx import TensorProto

from tests.synthetic.one_node_session import one_node_session

Array = npt.NDArray[Any]
TYPES = {"x": TensorProto.FLOAT, "cumulative_sequence_length": TensorProto.INT32}
LENGTHS = [3, 1, 64, 200, 65, 1]


def make_session(threads: int = 2) -> ort.InferenceSession:
    return one_node_session("SegmentMean", list(TYPES), TYPES, {}, threads)


def sequences(width: int, lengths: Sequence[int] = LENGTHS) -> list[Array]:
    random = np.random.default_rng(0)
    return [random.standard_normal((length, width)).astype(np.float32) + 1 for length in lengths]


def means(rows: Sequence[Array], session: ort.InferenceSession | None = None) -> Array:
    """[num_seqs, n] of one packed run."""
    ends = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    (output,) = (session or make_session()).run(None, {"x": np.concatenate(rows), "cumulative_sequence_length": ends})
    return np.asarray(output)


@pytest.mark.parametrize("width", [1, 7, 256, 257, 768])
def test_every_sequence_gets_the_mean_of_its_own_rows(width: int) -> None:
    rows = sequences(width)
    expected = [sequence.astype(np.float64).mean(axis=0) for sequence in rows]
    np.testing.assert_allclose(means(rows), expected, rtol=1e-6, atol=1e-6)


def test_thousands_of_rows_lose_no_digits() -> None:
    rows = sequences(40, [8192])
    np.testing.assert_allclose(means(rows)[0], rows[0].astype(np.float64).mean(axis=0), rtol=1e-6)


def test_the_mean_of_one_row_is_the_row() -> None:
    (row,) = sequences(300, [1])
    assert means([row]).tobytes() == row.tobytes()


def test_a_sequence_gets_the_same_bits_alone_in_any_batch_and_on_any_number_of_threads() -> None:
    rows, session = sequences(600), make_session()
    together = means(rows, session)
    assert np.concatenate([means([sequence], session) for sequence in rows]).tobytes() == together.tobytes()
    assert means(rows[::-1], session)[::-1].tobytes() == together.tobytes()
    assert means(rows, make_session(threads=1)).tobytes() == together.tobytes()


def test_a_broken_sequence_breaks_no_other() -> None:
    rows = sequences(20)
    clean = means(rows)
    rows[2][5] = np.nan
    broken = means(rows)
    assert np.isnan(broken[2]).all()
    assert np.delete(broken, 2, axis=0).tobytes() == np.delete(clean, 2, axis=0).tobytes()


def test_an_empty_batch_is_fine() -> None:
    feeds = {"x": np.zeros((0, 8), np.float32), "cumulative_sequence_length": np.zeros(1, np.int32)}
    assert make_session().run(None, feeds)[0].shape == (0, 8)


@pytest.mark.parametrize(
    ("shape", "ends", "message"),
    [
        ((1, 5, 8), [0, 5], r"x: got \[1, 5, 8\], allowed: 2 dimensions"),
        ((5, 8), [1, 5], r"cumulative_sequence_length\[0\]: got 1, allowed: 0"),
        ((5, 8), [0, 4], r"cumulative_sequence_length's last entry: got 4, allowed: 5 \(num_tokens\)"),
        ((5, 8), [0, 4, 3, 5], r"cumulative_sequence_length\[2\]: got 3, allowed: at least 4"),
        ((5, 8), [0, 4, 4, 5], r"cumulative_sequence_length\[2\]: got 4, allowed: at least 5 \(an empty sequence has no mean\)"),
        ((5, 8), [], r"cumulative_sequence_length: got \[0\], allowed: \[num_seqs \+ 1\]"),
        ((5, 8), [[0, 5]], r"cumulative_sequence_length: got \[1, 2\], allowed: 1 dimensions"),
    ],
    ids=str,
)
def test_a_bad_input_is_refused(shape: tuple[int, ...], ends: list[Any], message: str) -> None:
    feeds = {"x": np.zeros(shape, np.float32), "cumulative_sequence_length": np.array(ends, np.int32)}
    with pytest.raises(Exception, match="fastserve::SegmentMean: " + message):
        make_session().run(None, feeds)
