"""Small random models of every proven family, really exported and run by the runtime's own classes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

from fastserve.export.options import ExportOptions, ExportResult, Stage
from fastserve.export.text_generation import export_model
from fastserve.manifest import ModelManifest
from fastserve.worker import model_runner
from fastserve.worker.batch import Packer, SequenceInput
from fastserve.worker.device import Host
from fastserve.worker.kv_cache import KVCache
from fastserve.worker.model_runner import ModelRunner
from fastserve.worker.session import CPU_PROVIDERS, SessionSettings
from tests.synthetic.tiny_models import CHAT_TEMPLATE, TINY_CONFIGS, llama_config, save_model

FAMILIES = sorted(TINY_CONFIGS)
PROMPT_LENGTHS = (3, 17, 40)
NEW_TOKENS = 12
BLOCK_SIZE = 16
ONE_THREAD = SessionSettings(1)
GENERATION = {"do_sample": True, "temperature": 0.7, "top_k": 40}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {family: save_model(make(), folder / family, **GENERATION) for family, make in TINY_CONFIGS.items()}


@pytest.fixture(scope="session")
def exports(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportResult]:
    repository = tmp_path_factory.mktemp("repository")
    return {family: export_model(str(source), ExportOptions(repository)) for family, source in sources.items()}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def export(family: str, exports: dict[str, ExportResult]) -> ExportResult:
    return exports[family]


@pytest.fixture
def source(family: str, sources: dict[str, Path]) -> Path:
    return sources[family]


@pytest.fixture
def torch_model(source: Path) -> Iterator[Any]:
    yield AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()


def prompts(vocab_size: int) -> list[list[int]]:
    generator = np.random.default_rng(7)
    return [generator.integers(3, vocab_size, length).tolist() for length in PROMPT_LENGTHS]


def generate_with_torch(model: Any, prompt: list[int]) -> list[int]:
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            tokens.append(int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def generate_together(
    result: ExportResult, sequences: list[list[int]], kv_cache_dtype: str = "fp32", settings: SessionSettings = ONE_THREAD
) -> list[list[int]]:
    """Greedy tokens of all sequences, prefilled in one run and decoded together."""
    spec = result.manifest.cache
    assert spec is not None
    runner = ModelRunner(result.directory, result.manifest, kv_cache_dtype=kv_cache_dtype, session=settings)
    packer = Packer(BLOCK_SIZE)
    blocks = -(-(max(PROMPT_LENGTHS) + NEW_TOKENS) // BLOCK_SIZE)
    cache = KVCache(spec, blocks * len(sequences), BLOCK_SIZE, kv_cache_dtype)
    tables = [list(range(i, blocks * len(sequences), len(sequences))) for i in range(len(sequences))]
    tokens, done = [list(sequence) for sequence in sequences], [0] * len(sequences)
    for _ in range(NEW_TOKENS):
        inputs = [SequenceInput(t[at:], at, table, samples=True) for t, at, table in zip(tokens, done, tables, strict=True)]
        done = [len(t) for t in tokens]
        for sequence, row in zip(tokens, runner.run(packer.pack(inputs), cache), strict=True):
            sequence.append(int(row.argmax()))
    return [new[len(old) :] for new, old in zip(tokens, sequences, strict=True)]


def test_the_exported_graph_generates_what_the_source_generates(export: ExportResult, torch_model: Any) -> None:
    sequences = prompts(export.manifest.model.vocab_size)
    assert generate_together(export, sequences) == [generate_with_torch(torch_model, prompt) for prompt in sequences]


@pytest.mark.parametrize("kv_cache_dtype", ["fp16", "int8"])
def test_the_graphs_of_smaller_caches_run(export: ExportResult, kv_cache_dtype: str) -> None:
    answers = generate_together(export, prompts(export.manifest.model.vocab_size), kv_cache_dtype)
    assert [len(answer) for answer in answers] == [NEW_TOKENS] * len(PROMPT_LENGTHS)


class CountingHost(Host):
    """Names of what was bound."""

    def __init__(self) -> None:
        super().__init__()
        self.bound: list[str] = []

    def bind(self, binding: Any, name: str, array: Any) -> None:
        self.bound.append(name)
        super().bind(binding, name, array)


def test_decodes_bind_their_inputs_once_but_to_another_device_each_time(
    export: ExportResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is bound to another device is copied there at once."""
    sequences = prompts(export.manifest.model.vocab_size)
    expected = generate_together(export, sequences)
    for providers, times in ((CPU_PROVIDERS, 2), ((("CPUExecutionProvider", {"as": "another"}),), NEW_TOKENS)):
        host = CountingHost()
        monkeypatch.setattr(model_runner, "HOST", host)
        assert generate_together(export, sequences, settings=SessionSettings(1, providers=providers)) == expected
        counts = {name: host.bound.count(name) for name in ("input_ids", "past_seqlens", "logits_rows")}
        assert set(counts.values()) == {times}, counts


def test_a_sequence_alone_is_bitwise_what_it_is_in_a_batch(export: ExportResult) -> None:
    assert export.manifest.proof["max_abs_difference_alone_batched"] == 0.0


def test_the_proof_is_in_the_manifest_and_every_hash_holds(export: ExportResult) -> None:
    manifest = ModelManifest.load(export.directory)
    assert manifest == export.manifest
    assert manifest.verify(export.directory) == []
    assert {path.name for path in export.directory.iterdir()} == {*manifest.files, "manifest.json"}
    assert manifest.proof["max_abs_logit_difference"] < 1e-4
    assert manifest.proof["rows_compared"] > 100


def test_graph_inputs_have_the_contracts_names_types_and_shapes(export: ExportResult) -> None:
    graph = export.manifest.graphs["decoder"]
    shapes = {spec.name: (spec.dtype, spec.shape) for spec in graph.inputs if "." not in spec.name}
    learned = {"position_ids": ("int64", ("num_tokens",))}  # where rotations tell them, attention knows positions by itself
    assert shapes == (learned if export.manifest.model.model_type == "gpt2" else {}) | {
        "input_ids": ("int64", ("num_tokens",)),
        "cumulative_sequence_length": ("int32", ("num_seqs_plus_1",)),
        "past_seqlens": ("int32", ("num_seqs",)),
        "block_table": ("int32", ("num_seqs", "max_blocks")),
        "slot_mapping": ("int32", ("num_tokens",)),
        "logits_rows": ("int64", ("num_rows",)),
    }
    assert export.manifest.cache is not None
    for index, layer in enumerate(export.manifest.cache.layers):
        caches = {spec.name: spec.shape for spec in graph.inputs if spec.name.endswith(f".{index}")}
        assert caches[f"key_cache.{index}"] == ("num_blocks", layer.kv_num_heads, layer.head_size, "block_size")
        assert caches[f"value_cache.{index}"] == ("num_blocks", layer.kv_num_heads, "block_size", layer.head_size)
    assert [(spec.name, spec.dtype, spec.shape) for spec in graph.outputs] == [
        ("logits", "float32", ("num_rows", export.manifest.model.vocab_size))
    ]


def load_graph(export: ExportResult, kv_cache_dtype: str) -> onnx.ModelProto:
    path = export.directory / export.manifest.graphs["decoder"].files[kv_cache_dtype]
    return onnx.load(str(path), load_external_data=False)


def test_attention_nodes_mirror_the_signature_of_onnx_runtimes_op(export: ExportResult) -> None:
    nodes = [node for node in load_graph(export, "fp32").graph.node if node.op_type == "PagedAttention"]
    assert len(nodes) == 2
    for index, node in enumerate(nodes):
        assert node.domain == "fastserve"
        rotates, normalises = (export.manifest.model.model_type != "gpt2"), export.manifest.model.model_type == "qwen3"
        assert list(node.input[1:8]) == [
            *("", ""),  # key and value are in the first input
            f"key_cache.{index}",
            f"value_cache.{index}",
            "cumulative_sequence_length",
            "past_seqlens",
            "block_table",
        ]
        optional = [bool(name) for name in [*node.input[8:], *[""] * 6][:6]]
        assert optional == [rotates, rotates, True, False, normalises, normalises]
        assert node.input[10] == "slot_mapping"
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        known = {"num_heads", "kv_num_heads", "scale", "softcap", "local_window_size", "do_rotary"}
        assert set(attributes) == known | ({"qk_norm_epsilon"} if normalises else set())
        assert (attributes["num_heads"], attributes["do_rotary"], attributes["softcap"]) == (4, int(rotates), 0.0)


@pytest.mark.parametrize(
    ("kv_cache_dtype", "element_type", "rank"), [("fp16", onnx.TensorProto.FLOAT16, 4), ("int8", onnx.TensorProto.INT8, 3)]
)
def test_the_graphs_differ_only_in_their_caches(export: ExportResult, kv_cache_dtype: str, element_type: int, rank: int) -> None:
    single, other = load_graph(export, "fp32"), load_graph(export, kv_cache_dtype)
    for value, of_single in zip(other.graph.input, single.graph.input, strict=True):
        if "cache." in value.name:
            assert value.type.tensor_type.elem_type == element_type
            assert len(value.type.tensor_type.shape.dim) == rank
            value.type.CopyFrom(of_single.type)
    assert other == single


def test_weights_are_stored_once(export: ExportResult) -> None:
    stored = (export.directory / "model.onnx.data").stat().st_size
    assert stored <= 4 * export.manifest.model.num_parameters + 64 * 1024


def test_a_tied_head_multiplies_by_the_embedding_itself(exports: dict[str, ExportResult]) -> None:
    graph = load_graph(exports["llama"], "fp32").graph
    (embedding,) = [node.input[1] for node in graph.node if node.op_type == "PrepackedGather"]
    assert [node.op_type for node in graph.node if embedding in node.input] == ["PrepackedGather", "PrepackedMatMul"]


def test_nothing_of_the_exporting_machine_is_in_the_files(export: ExportResult, source: Path) -> None:
    for name in ("model.onnx", "model.kv_fp16.onnx", "model.kv_int8.onnx", "manifest.json"):
        content = (export.directory / name).read_bytes()
        assert str(source.parent).encode() not in content
        assert not re.search(rb"site-packages|\.py\b", content)


def test_the_saved_tokenizer_is_the_sources(export: ExportResult, source: Path) -> None:
    spec = export.manifest.tokenizer
    assert spec is not None
    saved, original = Tokenizer.from_file(str(export.directory / spec.file)), AutoTokenizer.from_pretrained(source)
    text = "The other one, <|im_end|> naïve 東京 42!"
    assert saved.encode(text).ids == original(text).input_ids
    assert saved.padding is None and saved.truncation is None
    assert (export.directory / (spec.chat_template or "")).read_text() == CHAT_TEMPLATE
    assert spec.special_tokens["eos_token"] == "<|im_end|>"


def test_end_ids_are_the_union_and_sampling_defaults_only_what_was_set(export: ExportResult) -> None:
    assert export.manifest.tokenizer is not None
    assert export.manifest.tokenizer.eos_token_ids == (0, 2)
    assert export.manifest.generation == {"temperature": 0.7, "top_k": 40}
    assert export.manifest.model.max_model_len == 256


def test_the_model_and_the_registry_are_as_before(exports: dict[str, ExportResult]) -> None:
    assert len(exports) == len(FAMILIES)
    assert "fastserve" not in AttentionInterface().valid_keys()


def test_stages_are_reported_in_order_and_timed(tmp_path: Path, sources: dict[str, Path]) -> None:
    seen: list[Stage] = []
    result = export_model(str(sources["llama"]), ExportOptions(tmp_path, name="other", version=3), seen.append)
    assert seen == [stage for stage in Stage if stage not in (Stage.WEIGH, Stage.MEASURE)]
    assert list(result.seconds) == [stage.name for stage in seen]
    assert result.directory == tmp_path / "other" / "3"
    assert result.manifest.model.name == "other"


def test_dynamic_rope_gives_the_sources_tokens_up_to_its_original_length(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = save_model(llama_config(max_position_embeddings=64, rope_parameters=rope), tmp_path / "source")
    result = export_model(str(source), ExportOptions(tmp_path / "repository"))
    assert result.manifest.model.max_model_len == 64
    assert result.manifest.proof["longest_sequence"] == 64
