"""A session of a graph that is one node of the custom-op library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime as ort
from onnx import TensorProto, helper

from fastserve.worker import kernels


def one_node_session(
    operator: str,
    inputs: Sequence[str],
    types: Mapping[str, int],
    attributes: Mapping[str, Any],
    threads: int,
    outputs: Sequence[str] = ("output",),
) -> ort.InferenceSession:
    """A new session of ``fastserve::<operator>``, whose kernel takes its instruction set from FASTSERVE_ISA now.

    ``inputs``: in the operator's order, "" where an optional one is left out; ``types``: their ONNX element types. No input
    declares a shape, so that all checking is left to the op. The outputs are float.
    """
    node = helper.make_node(operator, inputs, outputs, domain="fastserve", **attributes)
    declared = [helper.make_tensor_value_info(name, types[name], None) for name in inputs if name]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("fastserve", 1)]
    model = helper.make_model(helper.make_graph([node], operator, declared, results), opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(kernels.library_path()))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
