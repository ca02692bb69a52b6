"""Moves the size of large channels from activations into the weights they are multiplied with, before both are quantised.

A few channels of a language model's activations are much larger than the others, and one scale a row must cover them all. What a
norm or a gate gives is divided by a factor for each channel, and the rows of the weights behind it are multiplied by it: the
product is the same, and easier to quantise (SmoothQuant: Xiao et al., 2023). Their alpha says how much of the size is moved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fastserve.export.attention import DOMAIN
from fastserve.export.rewrites import gated_activation, norms
from fastserve.export.rewrites.graph_edits import constant
from fastserve.export.rewrites.packed_products import is_constant_product, is_transposed

FloatArray = npt.NDArray[np.float32]
Peaks = Mapping[str, FloatArray]
"""Largest magnitudes of channels, by the name of a module of the source."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Smoothing:
    """What ``node``, a norm or a gate, gives to ``products`` and to nothing else. ``peaks`` [k]: largest magnitudes of its
    channels; ``weights`` [k]: of the weights they are multiplied with."""

    node: ir.Node
    products: tuple[ir.Node, ...]
    peaks: FloatArray
    weights: FloatArray

    def factors(self, alpha: float) -> FloatArray:
        """[k]; see :func:`smoothing_factors`."""
        return smoothing_factors(self.peaks, self.weights, alpha)


def smoothing_factors(peaks: FloatArray, weights: FloatArray, alpha: float) -> FloatArray:
    """[k], what channels are divided by; 1 where one was never seen, or is not read. ``alpha``: how much of what sets channels
    apart moves from activations into weights, 0 to 1."""
    known = (peaks > 0) & (weights > 0) & np.isfinite(peaks) & np.isfinite(weights)
    logs = np.zeros(len(peaks))
    logs[known] = alpha * np.log(peaks[known]) - (1 - alpha) * np.log(weights[known])
    found: FloatArray = np.exp(logs - logs.mean()).astype(np.float32)  # sizes stay as they are on the whole
    return found


def find_smoothings(graph: ir.Graph, peaks: Peaks) -> list[Smoothing]:
    """Everything that can be smoothed: ``peaks`` knows it, and nothing but products reads it."""
    found = []
    for node in graph:
        products = _products_behind(node.outputs[0]) if node.domain == DOMAIN else []
        if not products or not (node.op_type == norms.OPERATOR or (_opens_values(node) and len(products) == 1)):
            continue
        known = peaks.get(module_of(node if node.op_type == norms.OPERATOR else products[0]))
        if known is not None and len(known) == num_inputs(products[0]):
            found.append(Smoothing(node, tuple(products), known, _largest_weights(products)))
    return found


def smooth(graph: ir.Graph, smoothing: Smoothing, factors: FloatArray) -> None:
    """Divide the channels by ``factors`` [k], and multiply the weights behind them. The product changes by no more than rounding;
    by factors of 1, nothing changes."""
    if (factors == 1).all():
        return
    node = smoothing.node
    if node.op_type == norms.OPERATOR:
        for place in (1, 2):  # weight and bias
            if place < len(node.inputs) and node.inputs[place] is not None:
                _scale_input(graph, node, place, np.reciprocal(factors))
    else:  # the values that gates open: the second half of what one product makes
        assert node.inputs[0] is not None
        source = node.inputs[0].producer()
        assert source is not None
        _scale_input(graph, source, 1, np.reciprocal(np.concatenate([np.ones_like(factors), factors])))
    _scale_products(graph, list(smoothing.products), factors)


def _opens_values(node: ir.Node) -> bool:
    """Whether ``node`` gates values that one product makes, whose columns can be scaled."""
    if node.op_type != gated_activation.OPERATOR or node.inputs[0] is None:
        return False
    source = node.inputs[0].producer()
    return source is not None and is_constant_product(source) and not is_transposed(source)


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


def num_inputs(product: ir.Node) -> int:
    """k"""
    weight = product.inputs[1]
    assert weight is not None and weight.const_value is not None
    return int(weight.const_value.shape.numpy()[1 if is_transposed(product) else 0])


def _largest_weights(products: list[ir.Node]) -> FloatArray:
    """[k]"""
    largest = np.zeros(num_inputs(products[0]), np.float32)
    for product in products:
        weight = product.inputs[1]
        assert weight is not None and weight.const_value is not None
        largest = np.maximum(largest, np.abs(weight.const_value.numpy()).max(axis=0 if is_transposed(product) else 1))
    return largest


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
