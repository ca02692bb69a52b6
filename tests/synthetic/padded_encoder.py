"""A ready-made encoder that takes padded batches, small enough to compute by hand, as an ONNX file with its tokenizer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fastserve.core.encoding import TokenSequence
from fastserve.export.exporters import export_any
from fastserve.export.options import ExportOptions, ExportResult
from fastserve.manifest import EncoderSpec, GraphSpec, ModelManifest, TensorSpec, TokenizerSpec
from tests.doubles import make_manifest
from tests.synthetic.tiny_encoders import tiny_encoder_tokenizer

Array = npt.NDArray[np.float32]

HIDDEN, POSITIONS, PAD_ID = 16, 64, 0
VOCAB_SIZE = len(tiny_encoder_tokenizer("distilbert"))

LABELS = {"0": "O", "1": "B-PER", "2": "I-PER"}
CONFIG: dict[str, Any] = {"id2label": LABELS, "max_position_embeddings": POSITIONS, "model_type": "distilbert"}
"""The config.json of a :class:`PaddedEncoder` that labels tokens."""


@dataclasses.dataclass(frozen=True)
class PaddedEncoder:
    """Word, position and type embeddings, one softmax over the sequence, a linear head. ``output``: "token" [batch, length, n],
    "sequence" [batch, n] of the first token, or "ends": start_logits and end_logits [batch, length]. ``one_scale``: the head's
    operand is rounded to 8 bits by the largest number of the batch. ``shape``: of the inputs."""

    output: str = "token"
    num_columns: int = 3
    token_types: bool = False
    mask: bool = True
    heeds_mask: bool = True
    one_scale: bool = False
    integer: int = TensorProto.INT64
    shape: tuple[Any, ...] = ("batch", "seq")

    @property
    def input_names(self) -> list[str]:
        return ["input_ids", *(["attention_mask"] if self.mask else []), *(["token_type_ids"] if self.token_types else [])]

    def weights(self) -> dict[str, Array]:
        random = np.random.default_rng(7)
        shapes = {"words": (VOCAB_SIZE, HIDDEN), "positions": (POSITIONS, HIDDEN), "types": (2, HIDDEN)}
        return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} | {
            "head": random.standard_normal((HIDDEN, self.num_columns)).astype(np.float32)
        }

    def save(self, folder: Path, *, file: str = "model.onnx", external_data: str | None = None, **config: Any) -> Path:
        """Write graph, tokenizer.json and, if anything is to be in it, config.json; returns the graph's path."""
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(
            self.model(),
            folder / file,
            save_as_external_data=external_data is not None,
            location=external_data,
            size_threshold=100,
        )
        tiny_encoder_tokenizer("distilbert").backend_tokenizer.save(str(folder / "tokenizer.json"))
        if config:
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder / file

    def save_version(self, folder: Path, **encoder: Any) -> ModelManifest:
        """Write the graph alone; the manifest an import would give it. ``encoder``: fields of its EncoderSpec."""
        onnx.save(self.model(), folder / "model.onnx")
        dtype = "int32" if self.integer == TensorProto.INT32 else "int64"
        inputs = tuple(TensorSpec(name, dtype, ("batch", "length")) for name in self.input_names)
        shapes: dict[str, tuple[int | str, ...]] = {
            "token": ("batch", "length", self.num_columns),
            "sequence": ("batch", self.num_columns),
            "ends": ("batch", "length"),
        }
        outputs = tuple(TensorSpec(name, "float32", shapes[self.output]) for name in self._output_names)
        spec = {
            "max_length": 64,
            "stride": 8,
            "output": "sequence" if self.output == "sequence" else "token",
            "batching": "padded",
        }
        return make_manifest(
            task="token-classification",
            graphs={"encoder": GraphSpec({"none": "model.onnx"}, inputs, outputs)},
            tokenizer=TokenizerSpec("tokenizer.json", (), pad_token_id=PAD_ID),
            cache=None,
            encoder=EncoderSpec(**(spec | encoder)),
        )

    def expected(self, sequence: TokenSequence) -> Array:
        """[length, n] or [n]: what one sequence has to give, without padding and rounding, in float64."""
        weights = {name: array.astype(np.float64) for name, array in self.weights().items()}
        ids = np.array(sequence.token_ids)
        hidden = weights["words"][ids] + weights["positions"][: len(ids)]
        if self.token_types:
            hidden = hidden + weights["types"][np.array(sequence.token_type_ids or [0] * len(ids))]
        scores = np.exp(hidden @ hidden.T / HIDDEN)
        attended = scores @ hidden / scores.sum(axis=1, keepdims=True)
        result: Array = (attended @ weights["head"]).astype(np.float32)
        return result[0] if self.output == "sequence" else result

    @property
    def _output_names(self) -> list[str]:
        return ["start_logits", "end_logits"] if self.output == "ends" else ["logits"]

    def model(self) -> onnx.ModelProto:
        constants = {
            **self.weights(),
            "one": np.array([1], np.float32),
            "large": np.array([-1e9], np.float32),
            "scale": np.array([1 / HIDDEN], np.float32),
            "axis_1": np.array([1], np.int64),
            "axis_2": np.array([2], np.int64),
            "from_0": np.array(0, np.int64),
            "step": np.array(1, np.int64),
            "second": np.array(1, np.int64),
            "head_int8": np.clip(np.rint(self.weights()["head"] * 32), -127, 127).astype(np.int8),
            "head_scale": np.array([1 / 32], np.float32),
            "no_offset": np.array(0, np.int8),
        }
        nodes = [*self._embedding(), *self._attention(), *self._head()]
        read = {name for node in nodes for name in node.input}
        dims: dict[str, list[Any]] = {
            "token": ["b", "l", self.num_columns],
            "sequence": ["b", self.num_columns],
            "ends": ["b", "l"],
        }
        graph = helper.make_graph(
            nodes,
            "padded",
            [helper.make_tensor_value_info(name, self.integer, self.shape) for name in self.input_names],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims[self.output]) for name in self._output_names],
            [numpy_helper.from_array(array, name) for name, array in constants.items() if name in read],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)

    def _embedding(self) -> list[NodeProto]:
        types = [helper.make_node("Gather", ["types", "token_type_ids"], ["type"])] if self.token_types else []
        return [
            helper.make_node("Gather", ["words", "input_ids"], ["word"]),
            helper.make_node("Shape", ["input_ids"], ["input_shape"]),
            helper.make_node("Gather", ["input_shape", "second"], ["num_positions"]),
            helper.make_node("Range", ["from_0", "num_positions", "step"], ["indices"]),
            helper.make_node("Gather", ["positions", "indices"], ["position"]),
            *types,
            helper.make_node("Sum", ["word", "position", *(["type"] if types else [])], ["hidden"]),
        ]

    def _attention(self) -> list[NodeProto]:
        """Masked keys get -1e9."""
        heeded = self.mask and self.heeds_mask
        masking = [
            helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["one", "real"], ["padding"]),
            helper.make_node("Mul", ["padding", "large"], ["bias"]),
            helper.make_node("Unsqueeze", ["bias", "axis_1"], ["key_bias"]),
            helper.make_node("Add", ["scaled", "key_bias"], ["scores"]),
        ]
        return [
            helper.make_node("Transpose", ["hidden"], ["keys"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["hidden", "keys"], ["products"]),
            helper.make_node("Mul", ["products", "scale"], ["scaled" if heeded else "scores"]),
            *(masking if heeded else []),
            helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
            helper.make_node("MatMul", ["weights", "hidden"], ["attended"]),
        ]

    def _head(self) -> list[NodeProto]:
        rows = "first" if self.output == "sequence" else "attended"
        pick = [helper.make_node("Gather", ["attended", "from_0"], ["first"], axis=1)] if rows == "first" else []
        columns = "columns" if self.output == "ends" else "logits"
        rounding = [
            helper.make_node("DynamicQuantizeLinear", [rows], ["rounded", "row_scale", "offset"]),
            helper.make_node("MatMulInteger", ["rounded", "head_int8", "offset", "no_offset"], ["sums"]),
            helper.make_node("Cast", ["sums"], ["float_sums"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["row_scale", "head_scale"], ["both_scales"]),
            helper.make_node("Mul", ["float_sums", "both_scales"], [columns]),
        ]
        product = [helper.make_node("MatMul", [rows, "head"], [columns])]
        split = [
            helper.make_node("Split", ["columns"], ["start", "end"], axis=2),
            helper.make_node("Squeeze", ["start", "axis_2"], ["start_logits"]),
            helper.make_node("Squeeze", ["end", "axis_2"], ["end_logits"]),
        ]
        return [*pick, *(rounding if self.one_scale else product), *(split if self.output == "ends" else [])]


def random_sequences(lengths: Sequence[int], seed: int = 0, *, token_types: bool = False) -> list[TokenSequence]:
    """Some of them without types."""
    random = np.random.default_rng(seed)
    found = []
    for length in lengths:
        types = tuple(random.integers(0, 2, length).tolist()) if token_types and random.integers(0, 3) else ()
        found.append(TokenSequence(tuple(random.integers(1, VOCAB_SIZE, length).tolist()), types))
    return found


def import_encoder(tmp_path: Path, source: Path, task: str = "token-classification", **options: Any) -> ExportResult:
    """Import ``source`` into ``tmp_path / "repository"``. ``options``: of ExportOptions."""
    return export_any(str(source), ExportOptions(tmp_path / "repository", task=task, **options))
