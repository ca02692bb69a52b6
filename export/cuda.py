"""The closing checks of an export for CUDA, on machines that have none.

ONNX Runtime itself holds every node against its schemas, as far as its search for a kernel, which only its CUDA build has. And
what was written is read back as its twin for the CPU: every fp16 tensor fp32, the attention operator ours and its caches of our
layout, and nothing else changed. The twin goes through the proof of every other export, against the source with the same rounded
weights. What neither shows is what fp16 arithmetic on a GPU makes of it.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir

from fastserve.errors import ManifestError, ProofFailed, UnsupportedModel
from fastserve.export.attention import DOMAIN, OPERATOR, AttentionLayer
from fastserve.export.conversion import OPSET
from fastserve.export.description import graph_spec
from fastserve.export.onnx_files import write_graphs
from fastserve.export.proof import Reference, prove
from fastserve.export.targets import CUDA_DOMAIN, TARGETS
from fastserve.manifest import CPU, CUDA, CacheSpec, GraphSpec, ModelManifest, TensorSpec
from fastserve.worker.device import COPY_ROLE
from fastserve.worker.session import SessionSettings, create_session

COPY_FILE = "copy_blocks.onnx"
_HEAD_SIZE_MULTIPLE = 8
_NO_KERNEL = f"Could not find an implementation for {OPERATOR}"


def check_layers_for_cuda(model_type: str, layers: list[AttentionLayer]) -> None:
    """What ONNX Runtime's operator cannot do. Raises UnsupportedModel."""
    for layer in layers:
        if layer.head_size % _HEAD_SIZE_MULTIPLE:
            raise UnsupportedModel(
                f"{model_type}: head size {layer.head_size}; on CUDA it must be a multiple of {_HEAD_SIZE_MULTIPLE}"
            )


def write_copy_graph(directory: Path) -> GraphSpec:
    """Write the graph that copies blocks inside a pool (``worker/device.py``), one for every array of it."""
    element, index = onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64
    shape: tuple[int | str, ...] = ("num_blocks", "block_size", "kv_num_heads", "head_size")
    inputs = (
        TensorSpec("cache", "float16", shape),
        TensorSpec("sources", "int64", ("num_copies",)),
        TensorSpec("targets", "int64", ("num_copies", 1)),
    )
    output = TensorSpec("copied", "float16", shape)
    kinds = {"float16": element, "int64": index}
    infos = [onnx.helper.make_tensor_value_info(each.name, kinds[each.dtype], each.shape) for each in (*inputs, output)]
    nodes = [
        onnx.helper.make_node("Gather", ["cache", "sources"], ["rows"], axis=0),
        onnx.helper.make_node("ScatterND", ["cache", "targets", "rows"], ["copied"]),
    ]
    graph = onnx.helper.make_graph(nodes, COPY_ROLE, infos[:-1], infos[-1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)
    (directory / COPY_FILE).write_bytes(model.SerializeToString())
    return GraphSpec({"fp16": COPY_FILE}, inputs, (output,))


def prove_for_cuda(directory: Path, manifest: ModelManifest, reference: Reference) -> dict[str, float]:
    """The measures of the twin's proof. Raises ProofFailed."""
    check_accepted(directory / manifest.graphs["decoder"].files["fp16"])
    with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
        twin = write_twin(directory, manifest, Path(folder))
        return prove(Path(folder), twin, reference)


def check_accepted(file: Path) -> None:
    """ONNX Runtime's own checks of a graph (operators, attributes, types, shapes), until it misses the kernel that only its CUDA
    build has. Raises ProofFailed with what it says."""
    try:  # not optimised: ONNX Runtime 1.32 crashes when it optimises for the CPU around a node without a kernel
        create_session(file, SessionSettings(num_threads=1, optimize=False))
    except ManifestError as error:
        if _NO_KERNEL not in str(error):
            raise ProofFailed(f"ONNX Runtime refuses the graph: {' '.join(str(error).split())}") from None


def write_twin(directory: Path, manifest: ModelManifest, target_directory: Path) -> ModelManifest:
    """Write the decoder in ``directory`` as its twin for the CPU; returns the twin's manifest."""
    cpu = TARGETS[CPU]
    assert manifest.cache is not None
    model = ir.load(directory / manifest.graphs["decoder"].files["fp16"])
    _move_attention(model)
    _widen(model)
    write_graphs(model, target_directory, cpu.graph_files)
    return dataclasses.replace(
        manifest,
        model=dataclasses.replace(manifest.model, device=CPU),
        graphs={"decoder": graph_spec(model.graph, dict(cpu.graph_files))},
        cache=CacheSpec(manifest.cache.layers, *cpu.layouts),
    )


def _move_attention(model: ir.Model) -> None:
    """Make the attention operator ours, and turn the caches' axes as it has them."""
    for node in model.graph:
        if node.domain == CUDA_DOMAIN:
            node.domain = DOMAIN
    model.graph.opset_imports[DOMAIN] = model.graph.opset_imports.pop(CUDA_DOMAIN)
    for prefix, before, after in zip(("key_cache.", "value_cache."), TARGETS[CUDA].layouts, TARGETS[CPU].layouts, strict=True):
        for value in model.graph.inputs:
            if value.name is not None and value.name.startswith(prefix):
                assert value.shape is not None
                sizes = dict(zip(before.split(","), value.shape, strict=True))
                value.shape = ir.Shape([sizes[axis] for axis in after.split(",")])


def _widen(model: ir.Model) -> None:
    """Make every fp16 tensor of a graph fp32."""
    half, single = ir.DataType.FLOAT16, ir.DataType.FLOAT
    nodes = list(model.graph)
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(value for node in nodes for value in node.outputs)]
    for value in values:
        if value.dtype == half:
            value.type = ir.TensorType(single)
        if value.const_value is not None and value.const_value.dtype == half:
            value.const_value = _wide(value.const_value)
    for node in nodes:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == half:
                node.attributes[name] = ir.AttrTensor(name, _wide(attribute.as_tensor()))
            if (node.op_type, name) == ("Cast", "to") and attribute.as_int() == half:
                node.attributes[name] = ir.AttrInt64(name, int(single))


def _wide(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """The same numbers in fp32, made when they are written."""
    return ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().astype("float32")),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(tensor.numpy().shape),
        name=tensor.name,
    )
