"""A model exported for CUDA on a machine without a GPU: Triton says what is missing, and nothing is served wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastserve.errors import ToolError
from fastserve.export.options import ExportOptions
from fastserve.export.text_generation import export_model
from fastserve.tools.launcher import LaunchOptions, TritonLauncher
from tests.synthetic.tiny_models import llama_config, save_model


@pytest.fixture(scope="module")
def cuda_repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository with one model, ``llama``."""
    folder = tmp_path_factory.mktemp("cuda")
    source = save_model(llama_config(), folder / "llama")
    yield export_model(str(source), ExportOptions(folder / "repository", device="cuda", dtype="fp16")).model_directory.parent


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("KIND_GPU count: 1 gpus: [ 0 ]", "GPU"),  # Triton's own words
        ("KIND_CPU count: 1", r"exported for cuda.*no CUDAExecutionProvider.*triton-fastserve\[cuda\].*--device cpu"),
    ],
)
def test_a_model_for_cuda_does_not_load_and_the_reason_is_said(cuda_repository: Path, kind: str, reason: str) -> None:
    config = cuda_repository / "llama" / "config.pbtxt"
    config.write_text(config.read_text().replace("KIND_GPU count: 1 gpus: [ 0 ]", kind))
    with pytest.raises(ToolError, match=reason) as caught, TritonLauncher(cuda_repository, LaunchOptions(ready_timeout_s=300.0)):
        pass
    print(caught.value)
