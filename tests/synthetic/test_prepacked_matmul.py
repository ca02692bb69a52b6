"""fastserve::PrepackedMatMul and fastserve::PrepackedGather on every instruction set: against numpy, one order of every sum, and
what they refuse."""

from __future__ import annotations

import dataclasses
import platform
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from onnx import TensorProto

from fastserve.worker import kernels
from fastserve.worker.kernels.prepacked_weight import prepack_weight
from tests.synthetic.concurrent_runs import run_at_once
from tests.synthetic.guarded_memory import GuardedMemory
from tests.synthetic.one_node_session import one_node_session

Array = npt.NDArray[Any]
TYPES = dict.fromkeys(("x", "weight", "bias"), TensorProto.FLOAT) | {"ids": TensorProto.INT64}
# From the least to the best.
INSTRUCTION_SETS = ["generic", "avx2", "avx512"]
# On both sides of every boundary: steps of 4 inputs and of 32 ahead, pieces of 384 and 1536, rows that would share a set of a
# cache; panels of 32 columns, and several of them at once.
SIZES = [(1, 1), (3, 31), (4, 32), (5, 33), (31, 64), (33, 65), (130, 150), (385, 40), (1024, 70), (1537, 33), (3100, 20)]
MOST_ROWS = 65


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Kernels created inside the test use this instruction set (or the next lower one this processor has)."""
    monkeypatch.setenv("FASTSERVE_ISA", request.param)
    yield request.param


@dataclasses.dataclass(frozen=True)
class Linear:
    """``matrix`` [k, n]"""

    matrix: Array
    bias: Array | None

    def session(self, threads: int = 2) -> ort.InferenceSession:
        k, n = self.matrix.shape
        names = ["x", "weight", *(["bias"] if self.bias is not None else [])]
        return one_node_session("PrepackedMatMul", names, TYPES, {"k": k, "n": n}, threads)

    def feeds(self, x: Array) -> dict[str, Array]:
        feeds = {"x": x, "weight": prepack_weight(self.matrix)}
        return feeds if self.bias is None else feeds | {"bias": self.bias}

    def run(self, x: Array, session: ort.InferenceSession | None = None) -> Array:
        (output,) = (session or self.session()).run(None, self.feeds(x))
        return np.asarray(output)

    def one_by_one(self, x: Array, *, fused: bool) -> Array:
        """[rows, n]: the inputs added in their order, in float32; ``fused``: without rounding the products before."""
        product_type = np.longdouble if fused else np.float32
        sums = np.zeros((len(x), self.matrix.shape[1]), np.float32)
        for i, weights in enumerate(self.matrix):
            sums = (sums + x[:, i : i + 1].astype(product_type) * weights).astype(np.float32)
        return sums if self.bias is None else sums + self.bias


def random_linear(k: int, n: int, *, bias: bool = True) -> Linear:
    random = np.random.default_rng([k, n])
    return Linear(random.standard_normal((k, n), np.float32), random.standard_normal(n, np.float32) if bias else None)


def random_rows(rows: int, k: int) -> Array:
    return np.random.default_rng([rows, k]).standard_normal((rows, k), np.float32)


@pytest.mark.parametrize(("k", "n"), SIZES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_numpys_and_a_row_gets_the_same_bits_among_any_number_of_others(
    isa: str, k: int, n: int, bias: bool
) -> None:
    layer, x = random_linear(k, n, bias=bias), random_rows(MOST_ROWS, k)
    session = layer.session()
    together = layer.run(x, session)
    exact = x.astype(np.float64) @ layer.matrix + (0 if layer.bias is None else layer.bias)
    np.testing.assert_allclose(together, exact, rtol=0, atol=2e-6 * k)
    for rows in range(1, MOST_ROWS):
        assert layer.run(x[:rows], session).tobytes() == together[:rows].tobytes(), rows
        assert layer.run(x[-rows:], session).tobytes() == together[-rows:].tobytes(), rows


def test_the_inputs_are_added_in_their_order_with_one_rounding_each_where_the_processor_can(isa: str) -> None:
    layer, fused = random_linear(37, 100), kernels.isa() != "generic" or platform.machine() == "aarch64"
    for rows in (1, 2, 5, 30):
        x = random_rows(rows, 37)
        assert layer.run(x).tobytes() == layer.one_by_one(x, fused=fused).tobytes()


def test_a_product_of_many_blocks_of_rows_is_numpys(isa: str) -> None:
    for layer, rows in ((random_linear(1000, 300), 700), (random_linear(2048, 40), 900)):
        x = random_rows(rows, len(layer.matrix))
        together = layer.run(x)
        np.testing.assert_allclose(together, x.astype(np.float64) @ layer.matrix + layer.bias, rtol=0, atol=5e-4)
        assert layer.run(x[100:101]).tobytes() == together[100:101].tobytes()


def test_the_output_does_not_depend_on_the_number_of_threads(isa: str) -> None:
    layer, x = random_linear(256, 600), random_rows(100, 256)
    assert len({layer.run(x, layer.session(threads)).tobytes() for threads in (1, 2, 3)}) == 1


def test_one_session_can_run_from_several_threads_at_once(isa: str) -> None:
    layer = random_linear(1024, 300)
    session, inputs = layer.session(), [random_rows(rows, 1024) for rows in (3, 30, 70)]
    wanted = [layer.run(x, session).tobytes() for x in inputs]
    outputs = run_at_once(lambda x: layer.run(x, session).tobytes(), inputs, times=5)
    assert outputs == [[bits] * 5 for bits in wanted]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_stays_in_its_own_row(isa: str, value: float) -> None:
    layer, x = random_linear(100, 40), random_rows(9, 100)
    clean = layer.run(x)
    x[4, 99] = value
    broken = layer.run(x)
    assert not np.isfinite(broken[4]).any()
    assert np.delete(broken, 4, axis=0).tobytes() == np.delete(clean, 4, axis=0).tobytes()


@pytest.mark.parametrize("shape", [(0, 24), (1, 0, 24), (1, 6, 24), (2, 3, 24)], ids=str)
def test_leading_dimensions_are_kept(isa: str, shape: tuple[int, ...]) -> None:
    layer, x = random_linear(24, 40), np.random.default_rng(0).standard_normal(shape, np.float32)
    output = layer.run(x)
    assert output.shape == (*shape[:-1], 40)
    if x.size:
        assert output.tobytes() == layer.run(x.reshape(-1, 24)).tobytes()


@pytest.mark.parametrize(("k", "n"), [(3, 5), (67, 33), (64, 32), (132, 170)])
def test_nothing_is_read_or_written_past_the_end_of_a_tensor(isa: str, k: int, n: int) -> None:
    layer, memory = random_linear(k, n), GuardedMemory()
    session = layer.session()
    for rows in (1, 3, 5, 33):
        x = random_rows(rows, k)
        output = memory.run(session, layer.feeds(x), (rows, n))
        assert output.tobytes() == layer.run(x, session).tobytes()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((3, 11), np.float32)}, "x: got [3, 11], allowed: [.., 10]"),
        ({"x": np.zeros(10, np.float32)}, "x: got [10], allowed: [.., 10]"),
        ({"weight": np.zeros((1, 10, 32), np.float32)}, "weight: got [1, 10, 32], allowed: [2, 10, 32]"),
        ({"weight": np.zeros((10, 40), np.float32)}, "weight: got [10, 40], allowed: [2, 10, 32]"),
        ({"bias": np.zeros((1, 40), np.float32)}, "bias: got [1, 40], allowed: [40]"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value.partition(",")[0],
)
def test_a_tensor_of_the_wrong_shape_is_refused_by_name(arrays: dict[str, Array], message: str) -> None:
    layer = random_linear(10, 40)
    with pytest.raises(Exception, match=re.escape("fastserve::PrepackedMatMul: " + message)):
        layer.session().run(None, layer.feeds(np.zeros((3, 10), np.float32)) | arrays)


@pytest.mark.parametrize("operator", ["PrepackedMatMul", "PrepackedGather"])
@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"n": 8}, "attribute k: got 0, allowed: 1 to 16777216"),
        ({"k": 8}, "attribute n: got 0, allowed: 1 to 16777216"),
        ({"k": 16777217, "n": 8}, "attribute k: got 16777217, allowed: 1 to 16777216"),
        ({"k": 8, "n": -1}, "attribute n: got -1, allowed: 1 to 16777216"),
    ],
    ids=str,
)
def test_a_size_out_of_range_is_refused_when_the_graph_is_loaded(operator: str, attributes: dict[str, Any], message: str) -> None:
    first = "ids" if operator.endswith("Gather") else "x"
    with pytest.raises(Exception, match=f"fastserve::{operator}: {message}"):
        one_node_session(operator, [first, "weight"], TYPES, attributes, 1)


# --- lookups ----------------------------------------------------------------------------------------------------------


def gather(matrix: Array, ids: Array) -> Array:
    k, n = matrix.shape
    session = one_node_session("PrepackedGather", ["ids", "weight"], TYPES, {"k": k, "n": n}, 2)
    (found,) = session.run(None, {"ids": ids, "weight": prepack_weight(matrix)})
    return np.asarray(found)


@pytest.mark.parametrize(("k", "n"), [(8, 32), (7, 5), (64, 33), (576, 100)])
def test_a_lookup_gives_the_heads_column(k: int, n: int) -> None:
    matrix = random_linear(k, n).matrix
    ids = np.array([0, n - 1, 3, 3, *range(n)], np.int64)
    assert gather(matrix, ids).tobytes() == np.ascontiguousarray(matrix.T[ids]).tobytes()


def test_a_lookup_keeps_the_shape_of_its_ids() -> None:
    matrix = random_linear(8, 32).matrix
    assert gather(matrix, np.zeros((1, 5), np.int64)).shape == (1, 5, 8)
    assert gather(matrix, np.zeros(0, np.int64)).shape == (0, 8)


@pytest.mark.parametrize("wrong", [-1, 40])
def test_an_id_outside_the_vocabulary_is_named(wrong: int) -> None:
    with pytest.raises(Exception, match=rf"fastserve::PrepackedGather: ids\[2\]: got {wrong}, allowed: 0 to 39"):
        gather(random_linear(8, 40).matrix, np.array([1, 2, wrong], np.int64))


def test_a_table_of_another_size_is_named() -> None:
    session = one_node_session("PrepackedGather", ["ids", "weight"], TYPES, {"k": 8, "n": 40}, 1)
    with pytest.raises(Exception, match=re.escape("weight: got [1, 8, 32], allowed: [2, 8, 32]")):
        session.run(None, {"ids": np.zeros(1, np.int64), "weight": np.zeros((1, 8, 32), np.float32)})
