"""Which model repositories leave Triton nothing to complete, and what the launcher and the backend do with that."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastserve.config import ENCODER_TASKS
from fastserve.errors import ConfigError, ToolError
from fastserve.export.config_pbtxt import render_config_pbtxt, render_encoder_config_pbtxt
from fastserve.tools import launcher, triton_install
from fastserve.tools.complete_configs import DO_NOT_COMPLETE, are_complete
from fastserve.tools.launcher import LaunchOptions, TritonLauncher
from fastserve.tools.supervised import SupervisedServer
from fastserve.tools.supervisor import Job
from fastserve.triton.function_io import FunctionSettings, render_function_config
from fastserve.triton.services import check_complete
from fastserve.triton.tensor_io import Contract, TensorIO, gaps, lacks_batcher
from tests.unit.test_tools_launcher import make_system_triton

CONTRACT = Contract((TensorIO("in", "TYPE_STRING", (1,)),), (TensorIO("out", "TYPE_FP32", (-1,)),), max_batch_size=8)
WHOLE = {
    "input": [{"name": "in", "data_type": "TYPE_STRING", "dims": ["1"]}],
    "output": [{"name": "out", "data_type": "TYPE_FP32", "dims": ["-1"]}],
    "max_batch_size": 4,
    "dynamic_batching": {},
}


def repository(folder: Path, **configs: str) -> Path:
    """A model repository with these texts of config.pbtxt by model, and a file that is no model."""
    for name, text in configs.items():
        (folder / name).mkdir()
        (folder / name / "config.pbtxt").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text("not a model")
    return folder


def test_what_export_and_server_write_is_whole(tmp_path):
    settings = FunctionSettings(tmp_path, takes_parameters=True, max_queue_size=1, default_deadline_ms=0)
    encoders = {task.replace("-", "_"): render_encoder_config_pbtxt(task, 1024, {}) for task in ENCODER_TASKS}
    texts = {"decoder": render_config_pbtxt(), "function": render_function_config(8, 500, settings), **encoders}
    assert are_complete(repository(tmp_path, **texts))


@pytest.mark.parametrize(
    "text",
    [
        'backend: "fastserve"',
        render_config_pbtxt().replace("decoupled: true", "decoupled: false"),
        render_config_pbtxt().replace("max_batch_size: 0", "max_batch_size: 8"),  # then a batcher is to stand before it
        render_config_pbtxt().replace('backend: "fastserve"', 'backend: "onnxruntime"'),
        render_config_pbtxt().replace("TYPE_INT64", "TYPE_INT32"),
        render_encoder_config_pbtxt("reranking", 1024, {}).replace("dynamic_batching { }", ""),
        render_encoder_config_pbtxt("reranking", 1024, {}) + "model_transaction_policy { decoupled: true }",
        render_config_pbtxt() + 'parameters { key: "task" value { string_value: "dancing" } }',
        "this is no configuration",
    ],
)
def test_one_model_that_is_not_whole_or_not_ours_is_enough(tmp_path, text):
    assert not are_complete(repository(tmp_path, good=render_config_pbtxt(), other=text))


def test_a_model_without_a_configuration_is_not_whole_and_neither_is_an_empty_repository(tmp_path):
    assert not are_complete(repository(tmp_path))
    (repository(tmp_path, good=render_config_pbtxt()) / "bare" / "1").mkdir(parents=True)
    assert not are_complete(tmp_path)


def test_without_the_client_package_nothing_is_known(tmp_path, monkeypatch):
    folder = repository(tmp_path, good=render_config_pbtxt())
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    assert not are_complete(folder)


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (LaunchOptions(), False),
        (LaunchOptions(model_control_mode="poll"), True),
        (LaunchOptions(model_control_mode="explicit"), True),
        (LaunchOptions(extra_args=("--model-repository=/elsewhere",)), True),
    ],
)
def test_triton_is_told_to_complete_nothing_where_it_loads_these_models_and_no_others(tmp_path, monkeypatch, options, asked):
    jobs: list[Job] = []

    def remember(job: Job) -> SupervisedServer:
        jobs.append(job)
        raise ToolError("enough")

    monkeypatch.setattr(launcher, "SupervisedServer", remember)
    (tmp_path / "models").mkdir()
    models = repository(tmp_path / "models", good=render_config_pbtxt())
    install = triton_install.system_triton(make_system_triton(tmp_path / "triton"))
    with pytest.raises(ToolError, match="enough"):
        TritonLauncher(models, options, install).start()
    assert (DO_NOT_COMPLETE not in jobs[0].command) == asked


def test_a_whole_configuration_has_no_gaps():
    assert gaps(WHOLE, CONTRACT) == [] and not lacks_batcher(WHOLE, CONTRACT)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"input": []}, ['input "in"']),
        ({"output": []}, ['output "out"']),
        ({"max_batch_size": 0}, ["max_batch_size: 8"]),
    ],
)
def test_gaps_are_named_as_they_would_be_filled(change, found):
    assert gaps(WHOLE | change, CONTRACT) == found


@pytest.mark.parametrize("size", [4, 0])
def test_a_batcher_is_worth_completing_a_configuration_for_and_no_gap(size):
    given = {key: value for key, value in WHOLE.items() if key != "dynamic_batching"} | {"max_batch_size": size}
    assert lacks_batcher(given, CONTRACT)
    assert lacks_batcher(given, Contract((), (), max_batch_size=0)) == bool(size)
    assert "dynamic_batching" not in " ".join(gaps(given, CONTRACT))


def test_a_model_that_nobody_completed_is_refused_with_what_it_lacks():
    with pytest.raises(ConfigError, match=r'lacks input "text_input", .*decoupled: true.*--disable-auto-complete-config'):
        check_complete({"parameters": {}})
