"""Moves the size of large channels from activations into the weights they are multiplied with, before both become int8.

A few channels of a language model's activations are much larger than the others, and one scale a row must cover them all. What a
norm or a gate gives is divided by a factor for each channel, and the rows of the weights behind it are multiplied by it: the
product is the same, and easier to quantise (SmoothQuant: Xiao et al., 2023, with their alpha of 1/2).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fastserve.export.attention import DOMAIN
from fastserve.export.rewrites import gated_activation, norms
from fastserve.export.rewrites.graph_edits import constant
from fastserve.export.rewrites.quantization import is_constant_product, is_transposed

FloatArray = npt.NDArray[np.float32]
Peaks = Mapping[str, FloatArray]
"""Largest magnitudes of channels, by the name of a module of the source."""


def smooth(graph: ir.Graph, peaks: Peaks) -> None:
    """Smooth everything that ``peaks`` knows and that nothing but products reads."""
    for node in [node for node in graph if node.domain == DOMAIN]:
        products = _products_behind(node.outputs[0])
        if node.op_type == norms.OPERATOR and products:
            found = peaks.get(module_of(node))
            if found is not None and len(found) == _num_inputs(products[0]):
                factors = _factors(found, products)
                for place in (1, 2):  # weight and bias
                    if place < len(node.inputs) and node.inputs[place] is not None:
                        _scale_input(graph, node, place, np.reciprocal(factors))
                _scale_products(graph, products, factors)
        elif node.op_type == gated_activation.OPERATOR and len(products) == 1:
            _smooth_values(graph, node, products[0], peaks)


def _smooth_values(graph: ir.Graph, gate: ir.Node, product: ir.Node, peaks: Peaks) -> None:
    """The values that gates open: the second half of what one product makes."""
    found, source = peaks.get(module_of(product)), gate.inputs[0].producer() if gate.inputs[0] is not None else None
    if found is None or source is None or not is_constant_product(source):
        return
    if len(found) != _num_inputs(product) or is_transposed(source):
        return
    factors = _factors(found, [product])
    both = np.concatenate([np.ones_like(factors), factors])
    _scale_input(graph, source, 1, np.reciprocal(both))
    _scale_products(graph, [product], factors)


def module_of(node: ir.Node) -> str:
    """The name, in the source model, of the module that ``node`` comes from."""
    return (node.name or "").split("/", maxsplit=1)[0].removeprefix("model.")


def _products_behind(value: ir.Value) -> list[ir.Node]:
    """The products that read ``value``, or rows of it; none if anything else does."""
    products: list[ir.Node] = []
    for reader, place in value.uses():
        if reader.op_type == "Gather" and place == 0 and not reader.outputs[0].is_graph_output():
            found = _products_behind(reader.outputs[0])
            if not found:
                return []
            products += found
        elif place == 0 and is_constant_product(reader):
            products.append(reader)
        else:
            return []
    return products


def _num_inputs(product: ir.Node) -> int:
    """k"""
    weight = product.inputs[1]
    assert weight is not None and weight.const_value is not None
    return int(weight.const_value.shape.numpy()[1 if is_transposed(product) else 0])


def _factors(peaks: FloatArray, products: list[ir.Node]) -> FloatArray:
    """[k]; 1 where a channel was never seen, or is not read."""
    largest = np.zeros(len(peaks), np.float32)
    for product in products:
        weight = product.inputs[1]
        assert weight is not None and weight.const_value is not None
        largest = np.maximum(largest, np.abs(weight.const_value.numpy()).max(axis=0 if is_transposed(product) else 1))
    known = (peaks > 0) & (largest > 0) & np.isfinite(peaks) & np.isfinite(largest)
    ratio = np.divide(peaks, largest, out=np.ones_like(peaks), where=known)
    factors: FloatArray = np.sqrt(ratio).astype(np.float32)
    return factors / np.float32(np.exp(np.log(factors).mean()))  # sizes stay as they are on the whole


def _scale_products(graph: ir.Graph, products: list[ir.Node], factors: FloatArray) -> None:
    for product in products:
        weight = product.inputs[1]
        assert weight is not None
        rows = factors if is_transposed(product) else factors[:, None]
        lookups = [reader for reader, place in weight.uses() if reader.op_type == "Gather" and place == 0]
        scaled = _scale_input(graph, product, 1, rows)
        for lookup in lookups:
            _scale_back(graph, lookup, scaled, factors)


def _scale_back(graph: ir.Graph, lookup: ir.Node, scaled: ir.Value, factors: FloatArray) -> None:
    """Let an embedding that shares the head's weight read the scaled one, and divide what it finds."""
    found = lookup.outputs[0]
    readers = list(found.uses())
    back = constant(graph, f"{lookup.name}.back", ir.tensor(np.reciprocal(factors)))
    divided = ir.node("Mul", [found, back], name=f"{lookup.name}.scaled_back")
    divided.outputs[0].type, divided.outputs[0].shape = found.type, found.shape
    graph.insert_after(lookup, [divided])
    for reader, place in readers:
        reader.replace_input_with(place, divided.outputs[0])
    lookup.replace_input_with(0, scaled)


def _scale_input(graph: ir.Graph, node: ir.Node, place: int, scale: FloatArray) -> ir.Value:
    """Let a new constant, what it is times ``scale``, be an input of ``node``; it is computed when it is read."""
    value = node.inputs[place] if place < len(node.inputs) else None
    assert value is not None and value.const_value is not None
    stored = value.const_value
    name = f"{value.name}.smooth"
    while name in graph.initializers:
        name += ".again"

    def scaled() -> ir.TensorProtocol:
        return ir.tensor((stored.numpy() * scale).astype(np.float32), name=name)

    new = constant(graph, name, ir.LazyTensor(scaled, ir.DataType.FLOAT, ir.Shape(stored.shape.numpy()), name=name))
    node.replace_input_with(place, new)
    return new
