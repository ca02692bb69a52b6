"""A packed encoder small enough to compute by hand: embeddings, one attention layer, one linear head."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fastserve.core.encoding import TokenSequence
from fastserve.manifest import EncoderSpec, GraphSpec, ModelManifest, TensorSpec
from tests.doubles import make_manifest

Array = npt.NDArray[np.float32]

VOCAB_SIZE, MAX_POSITIONS, NUM_HEADS, HEAD_SIZE, NUM_COLUMNS = 50, 300, 2, 8, 5
HIDDEN = NUM_HEADS * HEAD_SIZE
INPUT_TYPES = {
    "input_ids": TensorProto.INT64,
    "position_ids": TensorProto.INT64,
    "token_type_ids": TensorProto.INT64,
    "cumulative_sequence_length": TensorProto.INT32,
    "sequence_rows": TensorProto.INT64,
    "logits_rows": TensorProto.INT64,
}
ROWS_INPUT = {"sequence": "sequence_rows", "row": "logits_rows", "token": None}
"""By kind of output: the input that names the rows the head is computed for."""


@dataclasses.dataclass(frozen=True)
class HandMadeEncoder:
    """``output``: as ``EncoderSpec.output``. Weights are the same for every kind."""

    output: str = "sequence"
    position_offset: int = 0

    def weights(self) -> dict[str, Array]:
        random = np.random.default_rng(7)
        shapes = {
            "words": (VOCAB_SIZE, HIDDEN),
            "positions": (MAX_POSITIONS, HIDDEN),
            "types": (2, HIDDEN),
            "qkv": (HIDDEN, 3 * HIDDEN),
            "head": (HIDDEN, NUM_COLUMNS),
        }
        return {name: random.standard_normal(shape).astype(np.float32) / 2 for name, shape in shapes.items()}

    def save(self, directory: Path, **encoder: Any) -> ModelManifest:
        """Write ``model.onnx``; ``encoder``: further fields of the manifest's EncoderSpec."""
        onnx.save(self._model(), directory / "model.onnx")
        inputs = tuple(TensorSpec(name, "int64", ("n",)) for name in self._input_names())
        graph = GraphSpec({"none": "model.onnx"}, inputs, (TensorSpec("logits", "float32", ("n", NUM_COLUMNS)),))
        spec = EncoderSpec(**({"max_length": 64, "stride": 8, "output": self.output} | encoder))
        return make_manifest(
            task="text-classification", graphs={"encoder": graph}, cache=None, encoder=spec, position_offset=self.position_offset
        )

    def _input_names(self) -> list[str]:
        rows = ROWS_INPUT[self.output]
        return ["input_ids", "position_ids", "token_type_ids", "cumulative_sequence_length", *([rows] if rows else [])]

    def _model(self) -> onnx.ModelProto:
        rows = ROWS_INPUT[self.output]
        head = "selected" if rows else "attended"
        nodes = [
            helper.make_node("Gather", ["words", "input_ids"], ["word"]),
            helper.make_node("Gather", ["positions", "position_ids"], ["position"]),
            helper.make_node("Gather", ["types", "token_type_ids"], ["type"]),
            helper.make_node("Sum", ["word", "position", "type"], ["embedded"]),
            helper.make_node("MatMul", ["embedded", "qkv"], ["packed"]),
            helper.make_node(
                "PackedAttention",
                ["packed", "", "", "cumulative_sequence_length"],
                ["attended"],
                domain="fastserve",
                num_heads=NUM_HEADS,
                kv_num_heads=NUM_HEADS,
            ),
            *([helper.make_node("Gather", ["attended", rows], ["selected"])] if rows else []),
            helper.make_node("MatMul", [head, "head"], ["logits"]),
        ]
        graph = helper.make_graph(
            nodes,
            "hand_made",
            [helper.make_tensor_value_info(name, INPUT_TYPES[name], ["n"]) for name in self._input_names()],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", NUM_COLUMNS])],
            [numpy_helper.from_array(array, name) for name, array in self.weights().items()],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("fastserve", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def expected(self, sequence: TokenSequence) -> Array:
        """What the runner has to give for one sequence, computed without packing, in float64."""
        weights = {name: array.astype(np.float64) for name, array in self.weights().items()}
        ids = np.array(sequence.token_ids)
        types = np.array(sequence.token_type_ids or [0] * len(ids))
        embedded = (
            weights["words"][ids] + weights["positions"][np.arange(len(ids)) + self.position_offset] + weights["types"][types]
        )
        query, key, value = np.split(embedded @ weights["qkv"], 3, axis=1)
        heads = [slice(index * HEAD_SIZE, (index + 1) * HEAD_SIZE) for index in range(NUM_HEADS)]
        attended = np.concatenate([_attend(query[:, head], key[:, head], value[:, head]) for head in heads], axis=1)
        rows = {"sequence": attended[0], "token": attended, "row": attended[list(sequence.rows)]}[self.output]
        result: Array = (rows @ weights["head"]).astype(np.float32)
        return result


def _attend(query: npt.NDArray[Any], key: npt.NDArray[Any], value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Bidirectional softmax attention of one head, each [length, HEAD_SIZE]."""
    scores = np.exp(query @ key.T / np.sqrt(HEAD_SIZE))
    attended: npt.NDArray[Any] = scores @ value / scores.sum(axis=1, keepdims=True)
    return attended


def random_sequences(lengths: Sequence[int], seed: int = 0) -> list[TokenSequence]:
    """Sequences with token types and up to three wanted rows each; some have no types or no rows."""
    random = np.random.default_rng(seed)
    found = []
    for length in lengths:
        types = random.integers(0, 2, length).tolist() if random.integers(0, 3) else ()
        rows = sorted(random.choice(length, min(length, int(random.integers(0, 4))), replace=False).tolist())
        found.append(TokenSequence(tuple(random.integers(0, VOCAB_SIZE, length).tolist()), tuple(types), tuple(rows)))
    return found
