"""The config.pbtxt an export writes is one Triton can read, and its comments are settings the engine knows."""

from __future__ import annotations

import re
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fastserve.config import EngineConfig, parse_config
from fastserve.export.config_pbtxt import render_config_pbtxt
from fastserve.manifest import CPU, CUDA
from fastserve.triton.generation_io import TEXT_GENERATION_INPUTS, TEXT_GENERATION_OUTPUTS


def parse(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_triton_reads_a_decoupled_cpu_model_of_our_backend() -> None:
    config = parse(render_config_pbtxt())
    assert config.backend == "fastserve"
    assert config.max_batch_size == 0
    assert config.model_transaction_policy.decoupled
    assert [(group.kind, group.count) for group in config.instance_group] == [(model_config_pb2.ModelInstanceGroup.KIND_CPU, 1)]


def test_for_cuda_it_is_a_gpu_model_and_the_settings_that_the_graph_needs_stand_in_force() -> None:
    text = render_config_pbtxt(CUDA)
    config = parse(text)
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, 1, [0])
    settings = parse_config(EngineConfig, {key: value.string_value for key, value in config.parameters.items()})
    assert (settings.kv_cache_dtype, settings.block_size, settings.kv_cache_bytes) == ("fp16", 256, 4 << 30)
    uncommented = parse(re.sub(r"^# (parameters )", r"\1", text, flags=re.MULTILINE))
    assert len(uncommented.parameters) == len(EngineConfig.__slots__)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_quantised_model_has_a_cache_in_int8(dtype: str) -> None:
    config = parse(render_config_pbtxt(CPU, dtype))
    settings = parse_config(EngineConfig, {key: value.string_value for key, value in config.parameters.items()})
    assert settings == EngineConfig(kv_cache_dtype="int8")


def test_inputs_and_outputs_are_the_contracts_table() -> None:
    config = parse(render_config_pbtxt())
    for written, table in ((config.input, TEXT_GENERATION_INPUTS), (config.output, TEXT_GENERATION_OUTPUTS)):
        got = [(tensor.name, model_config_pb2.DataType.Name(tensor.data_type), tuple(tensor.dims)) for tensor in written]
        assert got == [(tensor.name, tensor.data_type, tensor.dims) for tensor in table]
    assert [tensor.name for tensor in config.input if not tensor.optional] == []


def test_every_engine_setting_is_there_as_a_comment_with_its_default() -> None:
    text = render_config_pbtxt()
    assert not parse(text).parameters
    uncommented = parse(re.sub(r"^# (parameters )", r"\1", text, flags=re.MULTILINE))
    parameters = {key: value.string_value for key, value in uncommented.parameters.items()}
    assert parse_config(EngineConfig, parameters) == EngineConfig()
    assert len(parameters) == len(EngineConfig.__slots__)
