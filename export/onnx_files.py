"""Writes graphs and their weights: of a decoder one graph for each element type of its caches, equal but for these inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import DeduplicateInitializersPass

WEIGHTS_FILE = "model.onnx.data"

_ELEMENT_TYPES = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}


def write_graph(model: ir.Model, path: Path) -> None:
    """Write one graph, and beside it :data:`WEIGHTS_FILE`. Equal weights are stored once."""
    DeduplicateInitializersPass()(model)
    ir.save(model, path, external_data=WEIGHTS_FILE)


def write_graphs(model: ir.Model, directory: Path, files: Mapping[str, str]) -> None:
    """Write a decoder's graphs over one :data:`WEIGHTS_FILE`. ``files``: KV element type -> file name; the first type is that of
    the model's caches."""
    first, *others = files
    write_graph(model, directory / files[first])
    for kv_dtype in others:
        proto = onnx.load(str(directory / files[first]), load_external_data=False)
        for value in proto.graph.input:
            if value.name.startswith(("key_cache.", "value_cache.")):
                value.type.tensor_type.elem_type = _ELEMENT_TYPES[kv_dtype]
                if kv_dtype == "int8":  # elements and their scales: [num_blocks, kv_num_heads, bytes of a block]
                    del value.type.tensor_type.shape.dim[3]
                    value.type.tensor_type.shape.dim[2].dim_param = "block_bytes"
        (directory / files[kv_dtype]).write_bytes(proto.SerializeToString())
