"""What keeps an export's memory small: the graph that is written holds the weights of the source, not copies.

How much that is for a large model, ``benchmarks/bench_export_memory.py`` measures.
"""

from __future__ import annotations

from fastserve.export.attention import probe
from fastserve.export.graph import convert, trace_packed
from fastserve.export.quiet import quiet_libraries
from fastserve.export.targets import TARGETS
from fastserve.manifest import CPU
from tests.synthetic.tiny_models import llama_config, random_model

SMALLEST_MATRIX = 4 * 32 * 64
"""Bytes; tables and constants are smaller."""


def test_the_graph_holds_the_weights_of_the_source_itself_and_no_copies() -> None:
    model = random_model(llama_config()).eval().requires_grad_(False)
    layers = probe(model)
    with quiet_libraries():
        graph = convert(trace_packed(model, layers, TARGETS[CPU]), len(layers), TARGETS[CPU]).graph
    of_the_source = {parameter.data_ptr() for parameter in model.parameters()}
    tensors = [value.const_value for value in graph.initializers.values() if value.const_value is not None]
    large = [tensor for tensor in tensors if tensor.nbytes >= SMALLEST_MATRIX]
    assert len(large) >= 7 * len(layers)
    copied = [tensor.name for tensor in large if tensor.numpy().__array_interface__["data"][0] not in of_the_source]
    assert copied == []
