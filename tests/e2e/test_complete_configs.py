"""A Triton that completes no configurations: what export writes needs none of it, and what lacks something says what."""

from __future__ import annotations

import shutil

import psutil
import pytest

from fastserve.errors import ToolError
from fastserve.tools.complete_configs import DO_NOT_COMPLETE
from fastserve.tools.launcher import LaunchOptions, TritonLauncher
from tests.e2e.encoder_wire import infer_grpc

ROWS = {"text_input": ["a good film", "b"]}
FORBIDDING = LaunchOptions(ready_timeout_s=300.0, extra_args=(DO_NOT_COMPLETE,))
BATCHER = "dynamic_batching { }"
OUTPUT = '{ name: "score" data_type: TYPE_FP32 dims: [ 1 ] },'


@pytest.fixture
def folder(encoder_repository, tmp_path):
    shutil.copytree(encoder_repository / "classify", tmp_path / "classify")
    return tmp_path


def test_an_exported_model_is_served_as_it_is_without_a_process_that_completes_it(folder, encoder_server):
    with TritonLauncher(folder, LaunchOptions(ready_timeout_s=300.0)) as launcher:
        assert DO_NOT_COMPLETE in psutil.Process(launcher.pid).cmdline()
        assert infer_grpc(launcher, "classify", ROWS) == infer_grpc(encoder_server, "classify", ROWS)


def test_a_model_that_lacks_something_is_completed_or_told_so_where_the_user_forbids_it(folder):
    config = folder / "classify" / "config.pbtxt"
    text = config.read_text()
    assert OUTPUT in text
    config.write_text(text.replace(OUTPUT, ""))
    with TritonLauncher(folder, LaunchOptions(ready_timeout_s=300.0)) as launcher:
        assert DO_NOT_COMPLETE not in psutil.Process(launcher.pid).cmdline()
        assert infer_grpc(launcher, "classify", ROWS)
    with pytest.raises(ToolError, match=r'config\.pbtxt: lacks output "score"; allowed: .*export'):
        TritonLauncher(folder, FORBIDDING).start()


def test_a_model_without_the_dynamic_batcher_is_served_where_the_user_forbids_completion(folder, encoder_server):
    config = folder / "classify" / "config.pbtxt"
    text = config.read_text()
    assert BATCHER in text
    config.write_text(text.replace(BATCHER, ""))
    with TritonLauncher(folder, FORBIDDING) as launcher:
        assert infer_grpc(launcher, "classify", ROWS) == infer_grpc(encoder_server, "classify", ROWS)
