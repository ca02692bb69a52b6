"""Writes graphs and their weights: of a decoder one graph for each element type of its caches, equal but for these inputs."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import DeduplicateInitializersPass

GRAPH_FILES = {"fp32": "model.onnx", "fp16": "model.kv_fp16.onnx", "int8": "model.kv_int8.onnx"}
"""KV element type -> file name."""
WEIGHTS_FILE = "model.onnx.data"


def write_graph(model: ir.Model, path: Path) -> None:
    """Write one graph, and beside it :data:`WEIGHTS_FILE`. Equal weights are stored once."""
    DeduplicateInitializersPass()(model)
    ir.save(model, path, external_data=WEIGHTS_FILE)


def write_graphs(model: ir.Model, directory: Path) -> None:
    """Write the :data:`GRAPH_FILES` of a decoder over one :data:`WEIGHTS_FILE`."""
    write_graph(model, directory / GRAPH_FILES["fp32"])
    for kv_dtype, element_type in (("fp16", onnx.TensorProto.FLOAT16), ("int8", onnx.TensorProto.INT8)):
        proto = onnx.load(str(directory / GRAPH_FILES["fp32"]), load_external_data=False)
        for value in proto.graph.input:
            if value.name.startswith(("key_cache.", "value_cache.")):
                value.type.tensor_type.elem_type = element_type
                if kv_dtype == "int8":  # elements and their scales: [num_blocks, kv_num_heads, bytes of a block]
                    del value.type.tensor_type.shape.dim[3]
                    value.type.tensor_type.shape.dim[2].dim_param = "block_bytes"
        (directory / GRAPH_FILES[kv_dtype]).write_bytes(proto.SerializeToString())
