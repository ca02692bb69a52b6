"""From a torch module to a clean ONNX model: free shapes, contract names, weights shared where the source ties them."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch

from fastserve.errors import UnsupportedModel, first_line

OPSET = 21

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch notes the modules around a node, outermost first, and last the node itself."""


def trace(
    module: torch.nn.Module, inputs: Mapping[str, Any], dynamic_shapes: Mapping[str, Any], model_type: str
) -> torch.export.ExportedProgram:
    """Trace ``module`` on example ``inputs``, by the names of its parameters. Raises UnsupportedModel when it cannot be traced
    with free shapes."""
    with torch.no_grad():
        try:
            return torch.export.export(module.eval(), (), dict(inputs), dynamic_shapes=dict(dynamic_shapes), strict=False)
        except UnsupportedModel:
            raise
        except Exception as error:  # torch.export has no common base class for what a model may provoke
            raise UnsupportedModel(f"{model_type}: torch.export cannot trace it: {first_line(error)}") from error


def convert(
    program: torch.export.ExportedProgram, names: tuple[list[str], list[str]], dynamic_shapes: Mapping[str, Any], role: str
) -> ir.Model:
    """The traced program as an ONNX model without source paths. ``names``: of inputs and outputs. ``dynamic_shapes``: as for
    :func:`trace`, the dimensions by name. ``role``: the graph's name.

    Raises UnsupportedModel when an operation has no ONNX form.
    """
    input_names, output_names = names
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=dict(dynamic_shapes),  # a traced program has forgotten the names
            opset_version=OPSET,
            optimize=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error  # the error itself is a page of advice
        raise UnsupportedModel(f"it cannot be converted to ONNX: {first_line(cause)}") from error
    assert converted is not None  # only None without dynamo
    model: ir.Model = converted.model
    multiply_by_shared_weights(model.graph)
    _name_nodes(model.graph)
    _strip_metadata(model, role)
    return model


def multiply_by_shared_weights(graph: ir.Graph) -> None:
    """Turn ``MatMul(x, Transpose(weight))`` into ``Gemm(x, weight, transB=1)`` where ``weight`` is stored untransposed.

    That is the tied LM head: the embedding reads the same initializer. ONNX Runtime would fold the transpose into a second
    private copy of the largest tensor of a small model.
    """
    for transpose in [node for node in graph if node.op_type == "Transpose"]:
        weight = transpose.inputs[0]
        if weight is None or not weight.is_initializer() or weight.shape is None or len(weight.shape) != 2:
            continue
        for product, index in list(transpose.outputs[0].uses()):
            rows = product.inputs[0]
            if (
                product.op_type == "MatMul"
                and index == 1
                and rows is not None
                and rows.shape is not None
                and len(rows.shape) == 3
            ):
                _replace_by_gemm(graph, product, rows, weight)
        if not transpose.outputs[0].uses():
            graph.remove(transpose, safe=True)


def _replace_by_gemm(graph: ir.Graph, product: ir.Node, rows: ir.Value, weight: ir.Value) -> None:
    assert weight.shape is not None and rows.shape is not None
    width = weight.shape[1]
    assert isinstance(width, int)
    name = product.outputs[0].name
    flat_shape = ir.Value(name=f"{name}.flat_shape", const_value=ir.tensor([-1, width], name=f"{name}.flat_shape"))
    axis = ir.Value(name=f"{name}.batch_axis", const_value=ir.tensor([0], name=f"{name}.batch_axis"))
    graph.register_initializer(flat_shape)
    graph.register_initializer(axis)
    flat = ir.node("Reshape", [rows, flat_shape])
    gemm = ir.node("Gemm", [flat.outputs[0], weight], {"transB": 1})
    batched = ir.node("Unsqueeze", [gemm.outputs[0], axis])
    for node, shape in (
        (flat, (rows.shape[1], weight.shape[1])),
        (gemm, (rows.shape[1], weight.shape[0])),
        (batched, (1, rows.shape[1], weight.shape[0])),
    ):
        node.outputs[0].shape = ir.Shape(shape)
        node.outputs[0].type = rows.type
    graph.insert_before(product, [flat, gemm, batched])
    product.outputs[0].replace_all_uses_with(batched.outputs[0])
    graph.remove(product, safe=True)


def _name_nodes(graph: ir.Graph) -> None:
    """Say of each node in which module of the source it was, e.g. "model.bert.encoder.layer.0.output.dense/node_linear_5"."""
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES) or "[]")
        if len(scopes) > 1:
            node.name = f"{scopes[-2]}/{node.name}"


def _strip_metadata(model: ir.Model, role: str) -> None:
    """Drop what tells about the exporting machine (source paths in stack traces) and only makes the file large."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    model.graph.name = role
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
