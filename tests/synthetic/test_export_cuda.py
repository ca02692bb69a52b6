"""Exports for CUDA, which nothing here can run: held against ONNX Runtime's own schemas, and proven by their twins on the CPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from fastserve.config import EngineConfig
from fastserve.engine.loader import load_engine
from fastserve.errors import ConfigError, ProofFailed, UnsupportedModel
from fastserve.export import attention
from fastserve.export.cuda import check_accepted, write_copy_graph, write_twin
from fastserve.export.half_precision import narrow_weights, round_weights
from fastserve.export.options import ExportOptions, ExportResult
from fastserve.export.text_generation import export_model
from fastserve.manifest import CUDA, CUDA_LAYOUT, CacheSpec, LayerCacheSpec
from fastserve.worker.batch import SequenceInput, pack
from fastserve.worker.device import HOST, Device, OrtDevice, device_of
from fastserve.worker.kv_cache import KVCache
from fastserve.worker.model_runner import ModelRunner
from tests.doubles import FakeClock
from tests.synthetic.decoder_families import FAMILIES
from tests.synthetic.operator_schemas import violations

EXPORTED = ("llama", "gpt_oss", "gemma2")
"""Plain; with sinks, experts and windows; with soft caps."""


def cuda_options(repository: Path, name: str) -> ExportOptions:
    return ExportOptions(repository, name=name, device=CUDA, dtype="fp16")


@pytest.fixture(scope="module")
def cuda_exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportResult]:
    folder = tmp_path_factory.mktemp("cuda")
    return {
        family: export_model(str(FAMILIES[family].save(folder / family)), cuda_options(folder / "repository", family))
        for family in EXPORTED
    }


def graph_file(result: ExportResult) -> Path:
    return result.directory / result.manifest.graphs["decoder"].files["fp16"]


@pytest.mark.parametrize("family", EXPORTED)
def test_every_node_is_as_the_schemas_of_onnx_runtime_say(family: str, cuda_exports: dict[str, ExportResult]) -> None:
    model = ir.load(graph_file(cuda_exports[family]))
    assert violations(model) == []
    domains = {node.domain for node in model.graph}
    assert domains == {"", "com.microsoft"}
    attention_nodes = [node for node in model.graph if node.domain == "com.microsoft"]
    assert {node.op_type for node in attention_nodes} == {"PagedAttention"}
    manifest = cuda_exports[family].manifest
    assert manifest.cache is not None and len(attention_nodes) == len(manifest.cache.layers)


@pytest.mark.parametrize("family", EXPORTED)
def test_onnx_runtime_misses_nothing_but_the_kernel_of_its_cuda_build(family: str, cuda_exports: dict[str, ExportResult]) -> None:
    check_accepted(graph_file(cuda_exports[family]))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda node: node.attribute.append(onnx.helper.make_attribute("windw", 3)), "windw"),
        (lambda node: node.input.__setitem__(5, "input_ids"), "cumulative_sequence_length|int64"),
    ],
)
def test_a_node_that_is_not_as_its_schema_says_is_refused(damage: Any, said: str, cuda_exports: Any, tmp_path: Path) -> None:
    proto = onnx.load(str(graph_file(cuda_exports["llama"])))
    damage(next(node for node in proto.graph.node if node.op_type == "PagedAttention"))
    onnx.save(proto, str(tmp_path / "damaged.onnx"))
    assert violations(ir.load(tmp_path / "damaged.onnx"))
    with pytest.raises(ProofFailed, match=said):
        check_accepted(tmp_path / "damaged.onnx")


@pytest.mark.parametrize("family", EXPORTED)
def test_the_twin_on_the_cpu_gives_the_sources_logits(family: str, cuda_exports: dict[str, ExportResult]) -> None:
    """The export has proven it; here is what it measured. The source has the weights that fp16 holds."""
    proof = cuda_exports[family].manifest.proof
    assert proof["max_abs_logit_difference"] < 1e-3 * proof["logit_scale"]
    assert proof["max_abs_difference_alone_batched"] == 0 and proof["greedy_disagreements"] == 0
    assert proof["rows_compared"] > 100 and 0 < proof["max_abs_logit_difference_fp16"] < proof["logit_scale"]


def test_a_feature_that_the_graph_for_cuda_drops_fails_the_proof(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    emit = attention.PagedInputs.emit

    def emit_without_a_window(self: Any, layer: attention.AttentionLayer, *operands: Any) -> Any:
        return emit(self, dataclasses.replace(layer, window=attention.NO_WINDOW), *operands)

    monkeypatch.setattr(attention.PagedInputs, "emit", emit_without_a_window)
    source = FAMILIES["mistral"].save(tmp_path / "mistral")
    with pytest.raises(ProofFailed, match="does not reproduce its source"):
        export_model(str(source), cuda_options(tmp_path / "repository", "mistral"))
    assert not (tmp_path / "repository" / "mistral").exists()


def test_caches_weights_and_results_have_their_types_and_layouts(cuda_exports: dict[str, ExportResult]) -> None:
    result = cuda_exports["llama"]
    manifest = result.manifest
    assert (manifest.model.device, manifest.model.dtype) == ("cuda", "fp16")
    assert manifest.cache is not None and (manifest.cache.key_layout, manifest.cache.value_layout) == (CUDA_LAYOUT, CUDA_LAYOUT)
    graph = ir.load(graph_file(result)).graph
    by_name = {value.name: value for value in graph.inputs}
    layer = manifest.cache.layers[1]
    for name in ("key_cache.1", "value_cache.1"):
        assert by_name[name].dtype == ir.DataType.FLOAT16 and by_name[name].shape is not None
        assert [str(size) for size in by_name[name].shape] == [
            "num_blocks",
            "block_size",
            str(layer.kv_num_heads),
            str(layer.head_size),
        ]
    assert graph.outputs[0].dtype == ir.DataType.FLOAT
    large = [each for each in graph.initializers.values() if each.const_value is not None and each.const_value.size > 256]
    assert large and {each.dtype for each in large} == {ir.DataType.FLOAT16}
    config = (result.model_directory / "config.pbtxt").read_text()
    assert "KIND_GPU" in config and 'parameters { key: "kv_cache_dtype" value: { string_value: "fp16" } }' in config
    assert 'parameters { key: "block_size" value: { string_value: "256" } }' in config


def test_without_cuda_loading_says_what_is_missing_and_what_would_mend_it(cuda_exports: dict[str, ExportResult]) -> None:
    result = cuda_exports["llama"]
    config = EngineConfig(kv_cache_dtype="fp16", block_size=256, kv_cache_bytes=1 << 24)
    with pytest.raises(ConfigError, match=r"no CUDAExecutionProvider, only .*triton-fastserve\[cuda\].*--device cpu"):
        load_engine(result.directory, result.manifest, config, FakeClock())


def on_the_cpu(directory: Path) -> OrtDevice:
    """What a GPU would be, with the processor in its place."""
    write_copy_graph(directory)
    return OrtDevice("cpu", 0, "CPUExecutionProvider", directory / "copy_blocks.onnx")


def test_blocks_of_a_pool_that_onnx_runtime_holds_are_copied_as_those_of_numpy(tmp_path: Path) -> None:
    spec = CacheSpec((LayerCacheSpec(2, 8), LayerCacheSpec(1, 16)), CUDA_LAYOUT, CUDA_LAYOUT)
    caches = [KVCache(spec, 7, 16, "fp16", device) for device in (HOST, on_the_cpu(tmp_path))]
    generator = np.random.default_rng(0)
    for ours, theirs in zip(caches[0].arrays().values(), caches[1].arrays().values(), strict=True):
        ours[:] = generator.standard_normal(ours.shape)
        theirs.update_inplace(ours)
    for cache in caches:
        cache.copy_blocks([(1, 4), (6, 0)])
        cache.copy_blocks([])
    for ours, theirs in zip(caches[0].arrays().values(), caches[1].arrays().values(), strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())
        assert (ours[4] == ours[1]).all() and not (ours[5] == ours[1]).all()


def test_a_pool_that_onnx_runtime_holds_is_written_in_place_by_the_runs(
    cuda_exports: dict[str, ExportResult], tmp_path: Path
) -> None:
    twin = write_twin(cuda_exports["llama"].directory, cuda_exports["llama"].manifest, tmp_path)
    assert twin.cache is not None

    def logits(device: Device) -> np.ndarray:
        runner, cache = ModelRunner(tmp_path, twin), KVCache(twin.cache, 5, 16, "fp32", device)
        first = SequenceInput(list(range(3, 24)), 0, [3, 1], samples=True)
        second = SequenceInput([9], 21, [3, 1], samples=True)
        return np.concatenate([runner.run(pack([item], 16), cache).copy() for item in (first, second)])

    np.testing.assert_array_equal(logits(HOST), logits(on_the_cpu(tmp_path)))
    assert device_of(twin, tmp_path) is HOST


def test_weights_are_rounded_once_and_those_that_do_not_fit_are_named() -> None:
    model = torch.nn.Linear(3, 2)
    before = model.weight.detach().clone()
    round_weights(model, torch.float16)
    assert model.weight.dtype == torch.float32 and torch.equal(model.weight, before.half().float())
    narrow_weights(model, torch.float16)
    assert model.weight.dtype == torch.float16 and torch.equal(model.weight, before.half())
    model = torch.nn.Linear(3, 2)
    model.weight.data[0, 0] = 1e5
    with pytest.raises(UnsupportedModel, match="weight: has values beyond 65504, the largest of float16"):
        round_weights(model, torch.float16)
