"""Reads a ready-made ONNX graph and refuses one that cannot be given a padded batch."""

from __future__ import annotations

import collections
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx_ir as ir

from fastserve.errors import ModelNotFound, UnsupportedModel
from fastserve.export.source import is_pointer
from fastserve.manifest import TensorSpec
from fastserve.worker.padded_batch import INTEGER_TYPES, PADDED_INPUTS

GRAPH_FILE = "model.onnx"
BATCH, LENGTH = "batch", "length"

_TAKES = f"allowed: {', '.join(PADDED_INPUTS)}, each {' or '.join(INTEGER_TYPES)} [{BATCH}, {LENGTH}]"
_DYNAMIC = f"its axes must be dynamic: [{BATCH}, {LENGTH}]; export the graph again with dynamic axes"

_ONE_SCALE_FOR_ALL = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
"""Operations that look at the whole batch to find the one scale by which they round every number in it."""

_WEIGHT_TYPES = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "int8",
    ir.DataType.INT4: "int4",
    ir.DataType.UINT4: "int4",
}


@dataclasses.dataclass(frozen=True, slots=True)
class ImportedGraph:
    """``data_files``: external weights, relative to the graph's folder. ``dtype``: of most weights. ``mixing_operation``: one
    that computes a sequence differently in other company."""

    inputs: tuple[TensorSpec, ...]
    data_files: tuple[str, ...]
    num_parameters: int
    dtype: str
    mixing_operation: str | None


def read_graph(file: Path) -> ImportedGraph:
    """Raises ModelNotFound when the file or one with its weights cannot be read, UnsupportedModel naming a bad input."""
    if is_pointer(file):
        raise ModelNotFound(f"{file} is only a pointer to the file: run `git lfs pull` in its folder")
    try:
        model = ir.load(file)
    except Exception as error:  # protobuf's own for a damaged file
        raise ModelNotFound(f"{file}: cannot be read as an ONNX file ({error})") from error
    weights = [value for graph in _graphs(model) for value in graph.initializers.values() if value.const_value is not None]
    sizes: collections.Counter[str] = collections.Counter()
    for value in weights:
        assert value.const_value is not None
        sizes[_WEIGHT_TYPES.get(value.const_value.dtype, "other")] += value.const_value.size
    sizes.pop("other", None)
    operations = {node.op_type for node in model.graph.all_nodes()}
    return ImportedGraph(
        inputs=tuple(_input(file, value) for value in _given_inputs(file, model.graph)),
        data_files=_data_files(file, weights),
        num_parameters=sizes.total(),
        dtype=sizes.most_common(1)[0][0] if sizes else "fp32",
        mixing_operation=next((name for name in _ONE_SCALE_FOR_ALL if name in operations), None),
    )


def copy_graph(file: Path, graph: ImportedGraph, directory: Path) -> None:
    """Copy the graph as :data:`GRAPH_FILE`, and its weights by the names it knows them by."""
    shutil.copyfile(file, directory / GRAPH_FILE)
    for name in graph.data_files:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.parent / name, directory / name)


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    yield from model.graph.subgraphs()


def _given_inputs(file: Path, graph: ir.Graph) -> list[ir.Value]:
    """Old graphs list their weights among the inputs."""
    given = [value for value in graph.inputs if not value.is_initializer()]
    if "input_ids" not in {value.name for value in given}:
        names = ", ".join(str(value.name) for value in given) or "nothing"
        raise UnsupportedModel(f"{file}: takes {names}, but no input_ids; {_TAKES}")
    return given


def _input(file: Path, value: ir.Value) -> TensorSpec:
    """Raises UnsupportedModel."""
    dtype = "unknown" if value.dtype is None else value.dtype.name.lower()
    shape = None if value.shape is None else [size if isinstance(size, int) else size.value for size in value.shape]
    shown = "of unknown shape" if shape is None else f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
    if value.name not in PADDED_INPUTS or dtype not in INTEGER_TYPES or (shape is not None and len(shape) != 2):
        raise UnsupportedModel(f"{file}: takes the input {value.name}, {dtype} {shown}; {_TAKES}")
    if any(isinstance(size, int) for size in shape or ()):
        raise UnsupportedModel(f"{file}: takes the input {value.name} only as {shown}; {_DYNAMIC}")
    return TensorSpec(value.name, dtype, (BATCH, LENGTH))


def _data_files(file: Path, weights: list[ir.Value]) -> tuple[str, ...]:
    names = {str(value.const_value.location) for value in weights if isinstance(value.const_value, ir.ExternalTensor)}
    for name in sorted(names):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or name in (GRAPH_FILE, "tokenizer.json", "manifest.json"):
            raise UnsupportedModel(f"{file}: keeps weights in {name}; allowed: files in its own folder, of other names")
        if not (file.parent / name).is_file():
            raise ModelNotFound(f"{file.parent / name}: the graph's weights are missing")
    return tuple(sorted(names))
