"""fastserve::RowNorm and fastserve::GatedActivation against float64, bit against bit with themselves, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from onnx import TensorProto

from tests.synthetic.one_node_session import one_node_session

Array = npt.NDArray[Any]
FLOAT = TensorProto.FLOAT
WIDTHS = (8, 19, 64, 576, 1000)
EPSILON = 1e-3


def random(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32) * 3


def norm_session(inputs: str, *, centred: int, threads: int = 2) -> ort.InferenceSession:
    """``inputs``: of x, weight, bias and skip, by their first letters, "-" for one left out."""
    names = {"x": "x", "w": "weight", "b": "bias", "s": "skip", "-": ""}
    given = [names[letter] for letter in inputs]
    outputs = ["output", "sum"] if "s" in inputs else ["output"]
    attributes = {"epsilon": EPSILON, "centred": centred}
    return one_node_session("RowNorm", given, dict.fromkeys(given, FLOAT), attributes, threads, outputs)


def expected_norm(total: Array, weight: Array, bias: Array | float, *, centred: int) -> Array:
    rows = total.astype(np.float64)
    if centred:
        rows = rows - rows.mean(axis=-1, keepdims=True)
    return np.asarray(rows / np.sqrt((rows**2).mean(axis=-1, keepdims=True) + EPSILON) * weight + bias)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("centred", [0, 1])
@pytest.mark.parametrize("inputs", ["xw", "xwb", "xw-s", "xwbs"])
def test_a_norm_equals_its_formula_and_gives_the_residual_sum(isa: str, inputs: str, centred: int, width: int) -> None:
    feeds = {"x": random(5, width) + 1, "weight": random(width), "bias": random(width) + 2, "skip": random(5, width) - 1}
    feeds = {name: array for name, array in feeds.items() if name[0] in inputs}
    output, *sums = norm_session(inputs, centred=centred).run(None, feeds)
    total = feeds["x"] + feeds["skip"] if "skip" in feeds else feeds["x"]
    wanted = expected_norm(total, feeds["weight"], feeds.get("bias", 0.0), centred=centred)
    np.testing.assert_allclose(output, wanted, rtol=2e-5, atol=2e-5)
    assert [found.tobytes() for found in sums] == [total.tobytes()] * len(sums)


def test_heads_are_normalised_each_by_itself() -> None:
    feeds = {"x": random(4, 3, 64), "weight": random(64)}
    (whole,) = norm_session("xw", centred=0).run(None, feeds)
    (flat,) = norm_session("xw", centred=0).run(None, feeds | {"x": feeds["x"].reshape(12, 64)})
    assert whole.tobytes() == flat.tobytes()


def test_the_sum_may_be_left_out() -> None:
    feeds = {"x": random(3, 24), "weight": random(24), "skip": random(3, 24)}
    session = one_node_session("RowNorm", ["x", "weight", "", "skip"], dict.fromkeys(feeds, FLOAT), {"epsilon": EPSILON}, 1)
    (both, _) = norm_session("xw-s", centred=0).run(None, feeds)
    assert session.run(None, feeds)[0].tobytes() == both.tobytes()


def test_a_row_is_normalised_to_the_same_bits_in_any_batch_and_on_any_number_of_threads(isa: str) -> None:
    x, skip, weight = random(100, 200), random(100, 200)[::-1].copy(), random(200)
    session = norm_session("xw-s", centred=1)
    whole, _ = session.run(None, {"x": x, "skip": skip, "weight": weight})
    one_thread, _ = norm_session("xw-s", centred=1, threads=1).run(None, {"x": x, "skip": skip, "weight": weight})
    rows = [session.run(None, {"x": x[i : i + 1], "skip": skip[i : i + 1], "weight": weight})[0] for i in range(100)]
    assert np.concatenate(rows).tobytes() == whole.tobytes() == one_thread.tobytes()


def gate_session(activation: str, threads: int = 2) -> ort.InferenceSession:
    return one_node_session("GatedActivation", ["x"], {"x": FLOAT}, {"activation": activation}, threads)


def expected_gate(activation: str, x: Array) -> Array:
    gate, value = np.split(x.astype(np.float64), 2, axis=-1)
    if activation == "silu":
        return np.asarray(gate / (1 + np.exp(-gate)) * value)
    return np.asarray(gate / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))) * value)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gates_open_by_their_activation(isa: str, activation: str, width: int) -> None:
    x = random(7, 2 * width)
    np.testing.assert_allclose(
        gate_session(activation).run(None, {"x": x})[0], expected_gate(activation, x), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gates_far_from_zero_are_shut_or_open_and_what_is_not_a_number_stays_so(isa: str, activation: str) -> None:
    gates = np.array([-1e30, -1000.0, -100.0, 0.0, 100.0, 1000.0, 1e30, np.nan], np.float32)
    x = np.concatenate([gates, np.ones(8, np.float32)])[None]
    (found,) = gate_session(activation).run(None, {"x": x})
    np.testing.assert_allclose(found[0], [0, 0, 0, 0, 100, 1000, 1e30, np.nan], rtol=1e-6, atol=1e-6)


def test_a_row_is_gated_to_the_same_bits_in_any_batch_and_on_any_number_of_threads(isa: str) -> None:
    x, session = random(60, 2 * 300), gate_session("silu")
    (whole,) = session.run(None, {"x": x})
    rows = [session.run(None, {"x": x[i : i + 1]})[0] for i in range(len(x))]
    assert np.concatenate(rows).tobytes() == whole.tobytes() == gate_session("silu", 1).run(None, {"x": x})[0].tobytes()


@pytest.mark.parametrize("shape", [(0, 16), (3, 0)])
def test_nothing_gives_nothing(shape: tuple[int, int]) -> None:
    (found,) = gate_session("silu").run(None, {"x": np.zeros(shape, np.float32)})
    assert found.shape == (shape[0], shape[1] // 2)
    (found,) = norm_session("xw", centred=0).run(
        None, {"x": np.zeros(shape, np.float32), "weight": np.ones(shape[1], np.float32)}
    )
    assert found.shape == shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": (9,)}, r"fastserve::RowNorm: weight: got \[9\], allowed: \[8\]"),
        ({"skip": (1, 8)}, r"fastserve::RowNorm: skip: got \[1, 8\], allowed: \[2, 8\]"),
        ({"bias": (1, 8)}, r"fastserve::RowNorm: bias: got \[1, 8\], allowed: \[8\]"),
        ({"x": (8,)}, r"fastserve::RowNorm: x: got \[8\], allowed: \[\.\., n\]"),
    ],
)
def test_a_norm_names_what_does_not_fit(changes: dict[str, tuple[int, ...]], message: str) -> None:
    shapes = {"x": (2, 8), "weight": (8,), "bias": (8,), "skip": (2, 8)} | changes
    with pytest.raises(Exception, match=message):
        norm_session("xwbs", centred=0).run(None, {name: random(*shape) for name, shape in shapes.items()})


def test_a_gated_activation_names_what_does_not_fit() -> None:
    with pytest.raises(Exception, match=r"fastserve::GatedActivation: x: got \[2, 5\], allowed: \[\.\., 2 n\]"):
        gate_session("silu").run(None, {"x": random(2, 5)})
    with pytest.raises(Exception, match='attribute activation: got "relu", allowed: silu or gelu_tanh'):
        gate_session("relu")
