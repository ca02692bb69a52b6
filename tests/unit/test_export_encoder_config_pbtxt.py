"""The config.pbtxt of an encoder is one Triton can read: the task's tensors, the measured budget, the other settings ready."""

from __future__ import annotations

import re
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fastserve.config import ENCODER_TASKS, TASK_PARAMETER, EncoderConfig, parse_config
from fastserve.export.config_pbtxt import render_encoder_config_pbtxt
from fastserve.triton.encoder_io import encoder_inputs, encoder_outputs

THROUGHPUTS = {64: 5000.0, 128: 9876.5}


def parse(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def parameters(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


@pytest.mark.parametrize("task", ENCODER_TASKS)
def test_triton_batches_the_tensors_of_the_task_without_delay(task: str) -> None:
    config = parse(render_encoder_config_pbtxt(task, 128, THROUGHPUTS))
    assert config.backend == "fastserve" and config.max_batch_size == 64
    assert config.HasField("dynamic_batching") and config.dynamic_batching.max_queue_delay_microseconds == 0
    assert not config.model_transaction_policy.decoupled
    for written, table in ((config.input, encoder_inputs(task)), (config.output, encoder_outputs(task))):
        got = [(each.name, model_config_pb2.DataType.Name(each.data_type), tuple(each.dims)) for each in written]
        assert got == [(each.name, each.data_type, each.dims) for each in table]
    assert [each.optional for each in config.input] == [each.optional for each in encoder_inputs(task)]


def test_task_and_measured_budget_are_set_and_the_measurement_is_shown() -> None:
    text = render_encoder_config_pbtxt("fill-mask", 128, THROUGHPUTS)
    assert parameters(parse(text)) == {TASK_PARAMETER: "fill-mask", "max_batched_tokens": "128"}
    assert re.search(r"^#\s+64\s+5000$", text, re.MULTILINE) and re.search(r"^#\s+128\s+9876$", text, re.MULTILINE)


def test_every_other_engine_setting_is_there_as_a_comment_with_its_default() -> None:
    text = render_encoder_config_pbtxt("fill-mask", EncoderConfig().max_batched_tokens, THROUGHPUTS)
    uncommented = parameters(parse(re.sub(r"^# (parameters )", r"\1", text, flags=re.MULTILINE)))
    assert parse_config(EncoderConfig, uncommented) == EncoderConfig()
    assert set(uncommented) == {TASK_PARAMETER, *EncoderConfig.__slots__}
