"""A product that computes its rows itself gives the bits of RowNorm or GatedActivation before it, and refuses what they would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from tests.synthetic.concurrent_runs import run_at_once
from tests.synthetic.one_node_session import one_node_session
from tests.synthetic.quantized_matmul_oracle import TYPES, Array, Linear, random_linear, random_rows

FLOAT = TensorProto.FLOAT
NORM_TYPES = TYPES | dict.fromkeys(("norm_weight", "norm_bias", "skip"), FLOAT)
ROWS = (1, 5, 33, 300)


def norm_operands(rows: int, k: int, used: str) -> dict[str, Array]:
    """``used``: of weight, bias and skip, by their first letters."""
    given = {"norm_weight": random_rows(1, k)[0], "norm_bias": random_rows(2, k)[1], "skip": random_rows(rows, k)[::-1].copy()}
    return {name: array for name, array in given.items() if name.removeprefix("norm_")[0] in used}


def norm_then_product(layer: Linear, x: Array, operands: dict[str, Array], *, centred: int) -> tuple[Array, Array]:
    """(output, sum) of two operators."""
    names = {"norm_weight": "weight", "norm_bias": "bias", "skip": "skip"}
    feeds = {"x": x} | {names[name]: array for name, array in operands.items()}
    inputs = [name if name in feeds else "" for name in ("x", "weight", "bias", "skip")]
    outputs = ["y", "sum"] if "skip" in feeds else ["y"]
    norm = one_node_session("RowNorm", inputs, dict.fromkeys(feeds, FLOAT), {"epsilon": 1e-3, "centred": centred}, 1, outputs)
    rows, *sums = norm.run(None, feeds)
    return layer.run(rows), np.asarray(sums[0] if sums else x)


def fused_norm(layer: Linear, operands: dict[str, Array], *, centred: int, threads: int = 2) -> Any:
    """A session of one node: x and ``operands`` to the output and, with a skip, the sum."""
    inputs = ["x", "weight", "weight_scale", "bias", *(name if name in operands else "" for name in tuple(NORM_TYPES)[-3:])]
    attributes = {"k": layer.k, "n": layer.n, "prologue": "norm", "epsilon": 1e-3, "centred": centred}
    outputs = ["output", "sum"] if "skip" in operands else ["output"]
    return one_node_session("QuantizedMatMul", inputs, NORM_TYPES, attributes, threads, outputs)


@pytest.mark.parametrize("centred", [0, 1])
@pytest.mark.parametrize("used", ["w", "wb", "ws", "wbs"])
def test_a_norm_inside_gives_the_bits_of_a_norm_before(isa: str, used: str, centred: int) -> None:
    layer = random_linear(200, 70)
    for rows in ROWS:
        x, operands = random_rows(rows, 200), norm_operands(rows, 200, used)
        expected, total = norm_then_product(layer, x, operands, centred=centred)
        output, *sums = fused_norm(layer, operands, centred=centred).run(None, layer.feeds(x) | operands)
        assert output.tobytes() == expected.tobytes(), rows
        assert [found.tobytes() for found in sums] == [total.tobytes()] * len(sums)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_gate_inside_gives_the_bits_of_a_gate_before(isa: str, activation: str) -> None:
    layer = random_linear(130, 33)
    attributes = {"k": layer.k, "n": layer.n, "prologue": activation}
    gate = one_node_session("GatedActivation", ["x"], {"x": FLOAT}, {"activation": activation}, 1)
    fused = one_node_session("QuantizedMatMul", ["x", "weight", "weight_scale", "bias"], TYPES, attributes, 2)
    for rows in ROWS:
        x = random_rows(rows, 260)
        (output,) = fused.run(None, layer.feeds(x))
        assert output.tobytes() == layer.run(gate.run(None, {"x": x})[0]).tobytes(), rows


def test_the_sum_may_be_left_out() -> None:
    layer, x, operands = random_linear(64, 20), random_rows(7, 64), norm_operands(7, 64, "ws")
    inputs = ["x", "weight", "weight_scale", "bias", "norm_weight", "", "skip"]
    attributes = {"k": 64, "n": 20, "prologue": "norm", "epsilon": 1e-3}
    (output,) = one_node_session("QuantizedMatMul", inputs, NORM_TYPES, attributes, 2).run(None, layer.feeds(x) | operands)
    assert output.tobytes() == norm_then_product(layer, x, operands, centred=0)[0].tobytes()


def test_a_row_gets_the_same_bits_alone_and_on_any_number_of_threads(isa: str) -> None:
    layer, x, operands = random_linear(300, 150), random_rows(90, 300), norm_operands(90, 300, "ws")
    session, feeds = fused_norm(layer, operands, centred=0), layer.feeds(x) | operands
    together = session.run(None, feeds)[0]
    rows = [session.run(None, feeds | {"x": x[i : i + 1], "skip": operands["skip"][i : i + 1]})[0] for i in range(90)]
    others = [fused_norm(layer, operands, centred=0, threads=threads).run(None, feeds)[0] for threads in (1, 8)]
    assert np.concatenate(rows).tobytes() == together.tobytes()
    assert all(other.tobytes() == together.tobytes() for other in others)


def test_one_session_can_run_from_several_threads_at_once() -> None:
    layer, operands = random_linear(192, 300), norm_operands(250, 192, "ws")
    session, inputs = fused_norm(layer, operands, centred=0), [random_rows(rows, 192) for rows in (3, 90, 250)]

    def run(x: Array) -> bytes:
        feeds = layer.feeds(x) | operands | {"skip": operands["skip"][: len(x)]}
        return bytes(session.run(None, feeds)[0].tobytes())

    assert run_at_once(run, inputs, times=5) == [[run(x)] * 5 for x in inputs]


def test_no_rows_give_no_rows() -> None:
    layer, operands = random_linear(16, 20), norm_operands(0, 16, "ws")
    found = fused_norm(layer, operands, centred=0).run(None, layer.feeds(np.zeros((0, 16), np.float32)) | operands)
    assert [array.shape for array in found] == [(0, 20), (0, 16)]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"norm_weight": np.zeros(9, np.float32)}, r"norm_weight: got \[9\], allowed: \[10\]"),
        ({"norm_bias": np.zeros((1, 10), np.float32)}, r"norm_bias: got \[1, 10\], allowed: \[10\]"),
        ({"skip": np.zeros((1, 10), np.float32)}, r"skip: got \[1, 10\], allowed: \[3, 10\]"),
        ({"x": np.zeros((3, 20), np.float32)}, r"x: got \[3, 20\], allowed: \[\.\., 10\]"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value.partition(",")[0],
)
def test_a_tensor_of_the_wrong_shape_is_refused_by_name(arrays: dict[str, Array], message: str) -> None:
    layer, operands = random_linear(10, 20), norm_operands(3, 10, "wbs")
    feeds = layer.feeds(random_rows(3, 10)) | operands | arrays
    with pytest.raises(Exception, match="fastserve::QuantizedMatMul: " + message):
        fused_norm(layer, operands, centred=0).run(None, feeds)


def test_gated_rows_must_be_twice_as_wide() -> None:
    layer = random_linear(10, 20)
    session = one_node_session(
        "QuantizedMatMul", ["x", "weight", "weight_scale", "bias"], TYPES, {"k": 10, "n": 20, "prologue": "silu"}, 1
    )
    with pytest.raises(Exception, match=r"fastserve::QuantizedMatMul: x: got \[3, 10\], allowed: \[\.\., 20\]"):
        session.run(None, layer.feeds(random_rows(3, 10)))


def test_a_norm_without_its_weight_is_refused() -> None:
    layer = random_linear(10, 20)
    with pytest.raises(Exception, match="fastserve::QuantizedMatMul: norm_weight"):
        fused_norm(layer, {}, centred=0).run(None, layer.feeds(random_rows(3, 10)))


def test_an_unknown_prologue_is_refused_when_the_graph_is_loaded() -> None:
    attributes = {"k": 10, "n": 20, "prologue": "relu"}
    with pytest.raises(Exception, match='attribute prologue: got "relu", allowed: none, norm, silu or gelu_tanh'):
        one_node_session("QuantizedMatMul", ["x", "weight", "weight_scale"], TYPES, attributes, 1)
