"""fastserve::PackedAttention against a float64 oracle, bit against bit with itself, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from onnx import TensorProto

from tests.synthetic.one_node_session import one_node_session

Array = npt.NDArray[Any]
TYPES = dict.fromkeys(("query", "key", "value"), TensorProto.FLOAT) | {"cumulative_sequence_length": TensorProto.INT32}
# On both sides of every boundary of strips of 16 and tiles of 64 tokens, and of several tiles.
LENGTHS = [3, 1, 16, 17, 64, 200, 65, 1, 31]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One attention layer. ``window`` -1: off; ``scale`` 0: 1 / sqrt(head_size)."""

    num_heads: int = 4
    kv_num_heads: int = 2
    head_size: int = 32
    window: int = -1
    scale: float = 0.0
    packed_qkv: bool = True

    def session(self, threads: int = 2) -> ort.InferenceSession:
        attributes: dict[str, float] = {"num_heads": self.num_heads, "kv_num_heads": self.kv_num_heads}
        attributes |= {"local_window_size": self.window} if self.window >= 0 else {}
        attributes |= {"scale": self.scale} if self.scale else {}
        names = ["query", "", ""] if self.packed_qkv else ["query", "key", "value"]
        return one_node_session("PackedAttention", [*names, "cumulative_sequence_length"], TYPES, attributes, threads)

    def tokens(self, length: int, seed: int = 0) -> Array:
        """Random queries, keys and values of one sequence: [length, (num_heads + 2 * kv_num_heads) * head_size]."""
        width = (self.num_heads + 2 * self.kv_num_heads) * self.head_size
        return np.random.default_rng([seed, length]).standard_normal((length, width)).astype(np.float32) * 2

    def batch(self, lengths: Sequence[int] = LENGTHS) -> list[Array]:
        return [self.tokens(length, seed) for seed, length in enumerate(lengths)]

    def split(self, tokens: Array) -> list[Array]:
        """Queries [length, num_heads * head_size], keys and values [length, kv_num_heads * head_size]."""
        keys = self.num_heads * self.head_size
        return [
            np.ascontiguousarray(part) for part in np.split(tokens, [keys, keys + self.kv_num_heads * self.head_size], axis=1)
        ]

    def feeds(self, sequences: Sequence[Array]) -> dict[str, Array]:
        packed = np.concatenate([self.tokens(0), *sequences])
        tensors = {"query": packed} if self.packed_qkv else dict(zip(("query", "key", "value"), self.split(packed), strict=True))
        return tensors | {"cumulative_sequence_length": np.cumsum([0, *map(len, sequences)], dtype=np.int32)}

    def run(self, sequences: Sequence[Array], session: ort.InferenceSession | None = None) -> list[Array]:
        """The output rows of each sequence of one packed run."""
        feeds = self.feeds(sequences)
        (output,) = (session or self.session()).run(None, feeds)
        return np.split(output, feeds["cumulative_sequence_length"][1:-1])

    def oracle(self, tokens: Array, rows: slice = slice(None)) -> Array:
        """Attention of one sequence in float64, of the queries in ``rows``: [rows, num_heads * head_size]."""
        length, group = len(tokens), self.num_heads // self.kv_num_heads
        parts = [part.astype(np.float64).reshape(length, -1, self.head_size) for part in self.split(tokens)]
        query, key, value = parts[0][rows], parts[1].repeat(group, axis=1), parts[2].repeat(group, axis=1)
        scores = np.einsum("qhd,khd->hqk", query, key) * (self.scale or self.head_size**-0.5)
        if self.window >= 0:
            distances = np.abs(np.arange(length)[rows, None] - np.arange(length))
            scores[:, distances > self.window] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.asarray(np.einsum("hqk,khd->qhd", weights, value)).reshape(len(query), -1)


# Every feature at once: what all of them together keep, each alone keeps.
LOADED = Layer(num_heads=6, kv_num_heads=2, head_size=24, window=70, scale=0.3)


def assert_matches_oracle(layer: Layer, sequences: Sequence[Array], outputs: Sequence[Array], tolerance: float = 2e-5) -> None:
    for tokens, output in zip(sequences, outputs, strict=True):
        np.testing.assert_allclose(output, layer.oracle(tokens), rtol=tolerance, atol=tolerance)


def assert_same_bits(left: Sequence[Array], right: Sequence[Array]) -> None:
    for one, other in zip(left, right, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("packed_qkv", [True, False], ids=["packed QKV", "three inputs"])
@pytest.mark.parametrize("head_size", [8, 16, 24, 32, 64, 80, 128, 256])
def test_a_mixed_batch_matches_the_oracle_for_every_head_size(isa: str, head_size: int, packed_qkv: bool) -> None:
    layer = Layer(head_size=head_size, packed_qkv=packed_qkv)
    assert_matches_oracle(layer, layer.batch(), layer.run(layer.batch()))


@pytest.mark.parametrize(("num_heads", "kv_num_heads"), [(1, 1), (5, 5), (9, 3), (8, 1)])
def test_every_grouping_of_heads_matches_the_oracle(isa: str, num_heads: int, kv_num_heads: int) -> None:
    layer = Layer(num_heads=num_heads, kv_num_heads=kv_num_heads, head_size=16)
    assert_matches_oracle(layer, layer.batch(), layer.run(layer.batch()))


@pytest.mark.parametrize("window", [0, 1, 5, 16, 63, 64, 65, 130, 500, 2**31 - 1])
def test_every_window_matches_the_oracle(isa: str, window: int) -> None:
    layer = Layer(head_size=16, window=window)
    assert_matches_oracle(layer, layer.batch(), layer.run(layer.batch()))


@pytest.mark.parametrize("scale", [0.05, 0.7])
def test_a_scale_replaces_the_usual_one(isa: str, scale: float) -> None:
    layer = Layer(scale=scale)
    assert_matches_oracle(layer, layer.batch(), layer.run(layer.batch()))


def test_three_inputs_give_the_bits_of_packed_qkv(isa: str) -> None:
    batch = LOADED.batch()
    assert_same_bits(dataclasses.replace(LOADED, packed_qkv=False).run(batch), LOADED.run(batch))


def test_a_window_that_reaches_everything_gives_the_bits_of_none(isa: str) -> None:
    batch = Layer().batch()
    assert_same_bits(Layer(window=199).run(batch), Layer().run(batch))


@pytest.mark.parametrize("layer", [LOADED, Layer(head_size=64)], ids=["windowed", "plain"])
def test_a_sequence_gets_the_same_bits_alone_and_in_any_batch(isa: str, layer: Layer) -> None:
    batch, session = layer.batch(), layer.session()
    together = layer.run(batch, session)
    assert_same_bits([layer.run([tokens], session)[0] for tokens in batch], together)
    assert_same_bits(layer.run(batch[::-1], session)[::-1], together)


def test_the_output_does_not_depend_on_the_number_of_threads(isa: str) -> None:
    outputs = [LOADED.run(LOADED.batch(), LOADED.session(threads)) for threads in (1, 2, 3)]
    assert_same_bits(outputs[0], outputs[1])
    assert_same_bits(outputs[0], outputs[2])


def test_a_token_alone_in_its_sequence_gets_its_own_value(isa: str) -> None:
    layer = Layer(num_heads=2, kv_num_heads=2)
    tokens = layer.tokens(1)
    assert_same_bits(layer.run([tokens]), [layer.split(tokens)[2]])


def test_a_sequence_of_4096_tokens_beside_short_ones_matches_the_oracle(isa: str) -> None:
    layer = Layer(num_heads=2, kv_num_heads=1, head_size=8)
    long, *short = batch = layer.batch([4096, 2, 33])
    output, *outputs = layer.run(batch)
    np.testing.assert_allclose(output[::61], layer.oracle(long, slice(None, None, 61)), rtol=2e-5, atol=1e-5)
    assert_matches_oracle(layer, short, outputs)


def test_huge_scores_stay_exact(isa: str) -> None:
    layer = Layer(head_size=16, scale=60.0)
    assert_matches_oracle(layer, layer.batch(), layer.run(layer.batch()), tolerance=1e-2)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_broken_sequence_breaks_no_other(isa: str, poison: float) -> None:
    batch, session = LOADED.batch(), LOADED.session()
    clean = LOADED.run(batch, session)
    batch[4][:] = poison
    outputs = LOADED.run(batch, session)
    assert np.isnan(outputs.pop(4)).all()
    assert_same_bits(outputs, clean[:4] + clean[5:])


def test_a_token_never_leaks_beyond_the_window(isa: str) -> None:
    tokens, session = LOADED.tokens(250), LOADED.session()
    (clean,) = LOADED.run([tokens], session)
    queries = LOADED.num_heads * LOADED.head_size
    tokens[100, queries:] = np.nan
    (output,) = LOADED.run([tokens], session)
    assert np.isnan(output[30:171]).all()
    assert_same_bits([output[:30], output[171:]], [clean[:30], clean[171:]])


def test_a_broken_query_gives_a_broken_row_and_no_other(isa: str) -> None:
    tokens, session = LOADED.tokens(90), LOADED.session()
    (clean,) = LOADED.run([tokens], session)
    tokens[11, : LOADED.num_heads * LOADED.head_size] = np.nan
    (output,) = LOADED.run([tokens], session)
    assert np.isnan(output[11]).all()
    assert_same_bits([np.delete(output, 11, axis=0)], [np.delete(clean, 11, axis=0)])


def test_empty_sequences_and_empty_batches_are_fine(isa: str) -> None:
    batch = [LOADED.tokens(0), LOADED.tokens(30), LOADED.tokens(0)]
    assert_matches_oracle(LOADED, batch[1:2], LOADED.run(batch)[1:2])
    assert LOADED.run([LOADED.tokens(0)])[0].shape == (0, 6 * 24)


def _bad_entry(index: int, value: int) -> Callable[[dict[str, Array]], None]:
    def change(feeds: dict[str, Array]) -> None:
        feeds["cumulative_sequence_length"][index] = value

    return change


def _bad_array(name: str, *shape: int) -> Callable[[dict[str, Array]], None]:
    return lambda feeds: feeds.update({name: np.zeros(shape, feeds[name].dtype)})


# Of sequences of 20 and 5 tokens, 4 query heads and 2 key/value heads of 32.
BAD_INPUTS = [
    (_bad_array("query", 25, 100), r"query: got \[25, 100\], allowed: num_heads \(4\) heads of a size that is a multiple of 8"),
    (_bad_array("query", 25, 4 * 264), r"query: got \[25, 1056\], allowed: .* from 8 to 256"),
    (_bad_array("query", 25, 0), r"query: got \[25, 0\]"),
    (_bad_array("query", 1, 25, 128), r"query: got \[1, 25, 128\], allowed: 2 dimensions"),
    (_bad_array("key", 25, 128), r"key: got \[25, 128\], allowed: \[25, 64\]"),
    (_bad_array("key", 24, 64), r"key: got \[24, 64\], allowed: \[25, 64\]"),
    (_bad_array("value", 25, 32), r"value: got \[25, 32\], allowed: \[25, 64\]"),
    (_bad_array("cumulative_sequence_length", 0), r"cumulative_sequence_length: got \[0\], allowed: \[num_seqs \+ 1\]"),
    (_bad_array("cumulative_sequence_length", 3, 1), r"cumulative_sequence_length: got \[3, 1\], allowed: 1 dimensions"),
    (_bad_entry(0, 1), r"cumulative_sequence_length\[0\]: got 1, allowed: 0"),
    (_bad_entry(1, 26), r"cumulative_sequence_length\[2\]: got 25, allowed: at least 26"),
    (_bad_entry(1, -1), r"cumulative_sequence_length\[1\]: got -1, allowed: at least 0"),
    (_bad_entry(2, 24), r"cumulative_sequence_length's last entry: got 24, allowed: 25 \(num_tokens\)"),
]


@pytest.mark.parametrize(("change", "message"), BAD_INPUTS, ids=[message for _, message in BAD_INPUTS])
def test_a_bad_input_is_refused(change: Callable[[dict[str, Array]], None], message: str) -> None:
    layer = Layer(packed_qkv=False)
    feeds = layer.feeds(layer.batch([20, 5]))
    change(feeds)
    with pytest.raises(Exception, match=r"fastserve::PackedAttention: " + message):
        layer.session().run(None, feeds)


def test_a_packed_query_of_another_width_is_refused() -> None:
    feeds = Layer().feeds([Layer().tokens(5)])
    feeds["query"] = np.zeros((5, 260), np.float32)
    with pytest.raises(Exception, match=r"query: got \[5, 260\], allowed: num_heads \+ 2 \* kv_num_heads \(8\) heads of a size"):
        Layer().session().run(None, feeds)


@pytest.mark.parametrize("absent", ["key", "value"])
def test_a_key_without_a_value_is_refused(absent: str) -> None:
    layer = Layer(packed_qkv=False)
    names = ["" if name == absent else name for name in TYPES]
    session = one_node_session("PackedAttention", names, TYPES, {"num_heads": 4, "kv_num_heads": 2}, 1)
    feeds = layer.feeds([layer.tokens(5)])
    del feeds[absent]
    with pytest.raises(Exception, match=f"{absent}: got nothing, allowed: key and value, or neither of them"):
        session.run(None, feeds)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"num_heads": 0}, "num_heads: got 0, allowed: 1 to 65536"),
        ({"kv_num_heads": 3}, r"kv_num_heads: got 3, allowed: a divisor of num_heads \(4\)"),
        ({"scale": -1.0}, "scale: got -1"),
        ({"scale": float("nan")}, "scale: got -?nan"),
        ({"local_window_size": -2}, "local_window_size: got -2, allowed: -1 .off. or 0 to 2147483647"),
        ({"local_window_size": 2**31}, "local_window_size: got 2147483648"),
    ],
    ids=str,
)
def test_a_bad_attribute_is_refused_when_the_session_is_made(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match="fastserve::PackedAttention: attribute " + message):
        one_node_session("PackedAttention", list(TYPES), TYPES, {"num_heads": 4, "kv_num_heads": 2, **attributes}, 1)
