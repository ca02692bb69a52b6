"""Every node of a graph against the schemas that ONNX Runtime has registered: operator, inputs, outputs, attributes, types."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema, schemadef

_OPTION = schemadef.OpSchema.FormalParameterOption
_TYPES = {
    ir.DataType.FLOAT: "tensor(float)",
    ir.DataType.FLOAT16: "tensor(float16)",
    ir.DataType.INT64: "tensor(int64)",
    ir.DataType.INT32: "tensor(int32)",
    ir.DataType.BOOL: "tensor(bool)",
}


def violations(model: ir.Model) -> list[str]:
    """One sentence for each thing that is not as the schemas say; values whose type the graph does not tell are one, too."""
    schemas: dict[tuple[str, str], list[Any]] = {}
    for schema in get_all_operator_schema():
        schemas.setdefault((schema.domain, schema.name), []).append(schema)
    found = []
    for node in model.graph:
        opset = model.graph.opset_imports[node.domain]
        fitting = [each for each in schemas.get((node.domain, node.op_type), ()) if each.since_version <= opset]
        if not fitting:
            found.append(f"{node.domain}::{node.op_type}: no such operator")
            continue
        schema = max(fitting, key=lambda each: each.since_version)
        found += [f"{node.op_type}: {what}" for what in (*_attributes(node, schema), *_values(node, schema))]
    return found


def _attributes(node: ir.Node, schema: Any) -> list[str]:
    found = [
        f"attribute {name} is missing"
        for name, each in schema.attributes.items()
        if each.required and name not in node.attributes
    ]
    for name, attribute in node.attributes.items():
        if name not in schema.attributes:
            found.append(f"no attribute {name}")
        elif attribute.type.name not in str(schema.attributes[name].type).replace("AttrType.", ""):
            found.append(f"attribute {name} is {attribute.type.name}, not {schema.attributes[name].type}")
    return found


def _values(node: ir.Node, schema: Any) -> list[str]:
    allowed = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}
    bound: dict[str, str] = {}
    found = []
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        required = [each.name for each in formals if each.option == _OPTION.Single]
        if len(values) < len(required) or (len(values) > len(formals) and formals[-1].option != _OPTION.Variadic):
            found.append(f"{len(values)} values for {len(formals)}")
        for index, value in enumerate(values):
            formal = formals[min(index, len(formals) - 1)]
            if value is None:
                found += [f"{formal.name} is missing"] if formal.option == _OPTION.Single else []
                continue
            kind = _TYPES.get(value.dtype, "") if value.dtype is not None else ""
            wanted = allowed.get(formal.typeStr, [formal.typeStr])
            if kind not in wanted:
                found.append(f"{formal.name} ({value.name}) is {kind or value.dtype}, not {' or '.join(wanted)}")
            if formal.typeStr in allowed and formal.isHomogeneous and bound.setdefault(formal.typeStr, kind) != kind:
                found.append(f"{formal.name} is {kind}, another {formal.typeStr} of the node {bound[formal.typeStr]}")
    return found
