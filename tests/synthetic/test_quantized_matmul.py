"""fastserve::QuantizedMatMul bit for bit against whole numbers in numpy, on every instruction set, with weights of 8 and of 4
bits, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastserve.worker import kernels
from tests.synthetic.concurrent_runs import run_at_once
from tests.synthetic.guarded_memory import GuardedMemory
from tests.synthetic.one_node_session import one_node_session
from tests.synthetic.quantized_matmul_oracle import TYPES, Array, Linear, linear, random_linear, random_rows

# From the least to the best.
INSTRUCTION_SETS = ["generic", "avx2", "avxvnni", "avx512", "avx512vnni", "amx"]
# On both sides of every boundary: groups of 4 and tiles of 64 inputs, panels of 16 channels and pairs of them.
SIZES = [(1, 1), (3, 15), (4, 16), (5, 17), (63, 31), (64, 32), (65, 33), (100, 100), (130, 64), (384, 70)]
# ... tiles of 6, 16 and 32 rows, and blocks of 192.
ROWS = [1, 2, 3, 4, 5, 6, 7, 12, 16, 17, 31, 32, 33, 36, 37, 48, 64, 70, 200]


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Kernels created inside the test use this instruction set (or the next lower one this processor has)."""
    monkeypatch.setenv("FASTSERVE_ISA", request.param)
    yield request.param


@pytest.fixture(params=[8, 4])
def weight_bits(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.mark.parametrize(("k", "n"), SIZES)
def test_every_shape_gives_the_bits_of_whole_number_arithmetic(isa: str, k: int, n: int, weight_bits: int) -> None:
    layer = random_linear(k, n, weight_bits=weight_bits)
    session = layer.session()
    for rows in ROWS:
        x = random_rows(rows, k)
        assert layer.run(x, session).tobytes() == layer.oracle(x).tobytes(), rows


def test_a_product_of_many_blocks_gives_the_bits_of_whole_number_arithmetic(isa: str, weight_bits: int) -> None:
    for k, n, rows in ((300, 1000, 450), (1000, 300, 1000), (40000, 70, 40)):
        layer = random_linear(k, n, weight_bits=weight_bits)
        x = random_rows(rows, layer.k)
        assert layer.run(x).tobytes() == layer.oracle(x).tobytes()


def test_a_row_gets_the_same_bits_alone_and_in_any_batch(isa: str, weight_bits: int) -> None:
    layer = random_linear(200, 150, weight_bits=weight_bits)
    x, session = random_rows(230, 200), layer.session()
    together = layer.run(x, session)
    for rows in (1, 4, 7, 40, 100):
        pieces = [layer.run(x[first : first + rows], session) for first in range(0, len(x), rows)]
        assert np.concatenate(pieces).tobytes() == together.tobytes()


def test_the_output_does_not_depend_on_the_number_of_threads(isa: str, weight_bits: int) -> None:
    layer, x = random_linear(256, 600, weight_bits=weight_bits), random_rows(400, 256)
    outputs = {layer.run(x, layer.session(threads)).tobytes() for threads in (1, 2, 3)}
    assert outputs == {layer.oracle(x).tobytes()}


def test_one_session_can_run_from_several_threads_at_once(isa: str, weight_bits: int) -> None:
    layer = random_linear(192, 300, weight_bits=weight_bits)
    session, inputs = layer.session(), [random_rows(rows, 192) for rows in (3, 90, 250)]
    outputs = run_at_once(lambda x: layer.run(x, session).tobytes(), inputs, times=5)
    assert outputs == [[layer.oracle(x).tobytes()] * 5 for x in inputs]


@pytest.mark.parametrize("k", [64, 770, 1 << 17])
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_the_largest_products_saturate_nowhere(isa: str, k: int, signs: tuple[int, int], weight_bits: int) -> None:
    layer = linear(np.full((k, 17), 127.0 * signs[0]), weight_bits=weight_bits)
    session = layer.session()
    assert (layer.quantized == 127 * signs[0]).all()
    for rows in (1, 3, 7):
        x = np.full((rows, k), 127.0 * signs[1], np.float32)
        assert (layer.run(x, session) == np.float32(signs[0] * signs[1] * 127 * 127 * k)).all()


def test_an_outlier_costs_the_precision_of_its_own_row_only(isa: str) -> None:
    layer, x = random_linear(100, 40), random_rows(9, 100)
    clean = layer.run(x)
    x[4, 17] = 3e38
    dirty = layer.run(x)
    assert dirty.tobytes() == layer.oracle(x).tobytes()
    assert np.delete(dirty, 4, axis=0).tobytes() == np.delete(clean, 4, axis=0).tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_nan_or_an_infinity_becomes_nan_and_no_other(isa: str, value: float) -> None:
    layer, x = random_linear(100, 40), random_rows(9, 100)
    clean = layer.run(x)
    x[4, 99] = value
    broken = layer.run(x)
    assert np.isnan(broken[4]).all()
    assert np.delete(broken, 4, axis=0).tobytes() == np.delete(clean, 4, axis=0).tobytes()


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1.4e-36])
def test_a_row_of_zeros_or_nearly_gives_the_bias(isa: str, value: float) -> None:
    layer = random_linear(100, 40)
    assert (layer.run(np.full((5, 100), value, np.float32)) == layer.bias).all()


def test_the_smallest_row_that_counts_is_quantised_like_any_other(isa: str) -> None:
    layer, x = random_linear(100, 40, bias=False), random_rows(5, 100)
    x *= np.float32(1.5e-36) / np.abs(x).max(axis=1, keepdims=True)
    assert layer.run(x).tobytes() == layer.oracle(x).tobytes()
    assert layer.oracle(x).any()


def test_the_bias_may_be_absent(isa: str) -> None:
    layer, x = random_linear(60, 50, bias=False), random_rows(40, 60)
    assert layer.run(x).tobytes() == layer.oracle(x).tobytes()


def test_the_result_is_near_the_product_of_the_floats_it_came_from() -> None:
    random = np.random.default_rng(0)
    weight, x = random.standard_normal((768, 64)), random.standard_normal((50, 768)).astype(np.float32)
    error = linear(weight).run(x) - x @ weight
    assert np.abs(error).mean() < 0.02 * np.abs(x @ weight).mean()


@pytest.mark.parametrize("shape", [(0, 24), (1, 0, 24), (1, 6, 24), (2, 3, 24)], ids=str)
def test_leading_dimensions_are_kept(isa: str, shape: tuple[int, ...]) -> None:
    layer, x = random_linear(24, 20), np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    output = layer.run(x)
    assert output.shape == (*shape[:-1], 20)
    if x.size:
        assert output.tobytes() == layer.oracle(x.reshape(-1, 24)).tobytes()


@pytest.mark.parametrize(("k", "n"), [(3, 5), (67, 17), (64, 32), (132, 100)])
def test_nothing_is_read_or_written_past_the_end_of_a_tensor(isa: str, k: int, n: int, weight_bits: int) -> None:
    layer, memory = random_linear(k, n, weight_bits=weight_bits), GuardedMemory()
    session = layer.session()
    for rows in (1, 5, 33):
        x = random_rows(rows, k)
        output = memory.run(session, layer.feeds(x), (rows, n))
        assert output.tobytes() == layer.oracle(x).tobytes()


def _changed(layer: Linear, **arrays: Array) -> dict[str, Array]:
    return layer.feeds(np.zeros((3, 10), np.float32)) | arrays


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((3, 11), np.float32)}, r"x: got \[3, 11\], allowed: \[\.\., 10\]"),
        ({"x": np.zeros(10, np.float32)}, r"x: got \[10\], allowed: \[\.\., 10\]"),
        ({"weight": np.zeros((2, 3, 64), np.int8)}, r"weight: got \[2, 3, 64\], allowed: \[2, 4, 64\]"),
        ({"weight": np.zeros((10, 20), np.int8)}, r"weight: got \[10, 20\], allowed: \[2, 4, 64\]"),
        ({"weight_scale": np.zeros(32, np.float32)}, r"weight_scale: got \[32\], allowed: \[20\]"),
        ({"bias": np.zeros((1, 20), np.float32)}, r"bias: got \[1, 20\], allowed: \[20\]"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value.partition(",")[0],
)
def test_a_tensor_of_the_wrong_shape_is_refused_by_name(arrays: dict[str, Array], message: str) -> None:
    layer = random_linear(10, 20)
    with pytest.raises(Exception, match="fastserve::QuantizedMatMul: " + message):
        layer.session().run(None, _changed(layer, **arrays))


def test_a_weight_of_other_bits_than_the_attribute_says_is_refused(weight_bits: int) -> None:
    layer, other = (random_linear(100, 20, weight_bits=bits) for bits in (weight_bits, 12 - weight_bits))
    message = rf"weight: got \[2, {other.packed.shape[1]}, 64\], allowed: \[2, {layer.packed.shape[1]}, 64\]"
    with pytest.raises(Exception, match=message):
        layer.session().run(None, layer.feeds(random_rows(3, 100)) | {"weight": other.packed})


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"k": 8, "n": 8, "weight_bits": 5}, "attribute weight_bits: got 5, allowed: 4 or 8"),
        ({"n": 8}, "attribute k: got 0, allowed: 1 to 131072"),
        ({"k": 8}, "attribute n: got 0, allowed: 1 to 16777216"),
        ({"k": 131073, "n": 8}, "attribute k: got 131073, allowed: 1 to 131072"),
        ({"k": 8, "n": -1}, "attribute n: got -1, allowed: 1 to 16777216"),
    ],
    ids=str,
)
def test_an_attribute_out_of_range_is_refused_when_the_graph_is_loaded(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        one_node_session("QuantizedMatMul", ["x", "weight", "weight_scale"], TYPES, attributes, 1)


def test_the_environment_can_ask_for_a_lower_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTSERVE_ISA", raising=False)
    best = kernels.quantized_isa()
    order = INSTRUCTION_SETS.index
    lower = []
    for wanted in INSTRUCTION_SETS:
        monkeypatch.setenv("FASTSERVE_ISA", wanted)
        got = kernels.quantized_isa()
        assert order(got) <= min(order(wanted), order(best))
        lower.append(order(got))
    assert lower[0] == 0
    assert lower == sorted(lower)
    assert lower[order(best)] == order(best)
