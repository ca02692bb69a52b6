"""What can be asked of an export, and what asking for it must not cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fastserve
from fastserve.config import ENCODER_TASKS
from fastserve.errors import InvalidRequest
from fastserve.export.options import ExportOptions, model_name_from

PACKAGE = Path(fastserve.__file__).parent


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("task", "text-to-speech", "text-generation"),
        ("dtype", "fp8", "fp32"),
        ("version", 0, "at least 1"),
        ("name", "../escape", "letters"),
        ("name", ".hidden", "letters"),
        ("max_model_len", 1, "at least 2"),
        ("device", "tpu", "cpu or cuda"),
        ("dtype", "fp16", "fp16 for device cuda, and only for it"),
        ("keep_fp32", ("lm_head",), "only with dtype int8 or int4, not with fp32"),
        ("quality_text", Path("text"), "only with dtype int8 or int4, not with fp32"),
        ("max_perplexity_rise", 1.0, "only with dtype int8 or int4, not with fp32"),
    ],
)
def test_a_bad_option_is_refused_with_its_name_its_value_and_what_is_allowed(field: str, value: object, allowed: str) -> None:
    with pytest.raises(InvalidRequest, match=allowed) as caught:
        ExportOptions(**{"output": Path("repository"), field: value})  # type: ignore[arg-type]
    assert field in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("task", ENCODER_TASKS)
def test_4_bits_are_refused_for_encoders(task: str) -> None:
    with pytest.raises(InvalidRequest, match=f"dtype: got 'int4', allowed: only for text-generation, not for {task}"):
        ExportOptions(Path("repository"), task=task, dtype="int4")


@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_a_gpu_takes_no_quantised_weights(dtype: str) -> None:
    with pytest.raises(InvalidRequest, match=f"dtype: got '{dtype}', allowed: fp16 for device cuda"):
        ExportOptions(Path("repository"), device="cuda", dtype=dtype)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("org/Some-Model", "Some-Model"),
        ("my model (v2)", "my_model_v2_"),
        (".weird", "weird"),
        ("Model.Q4_1", "Model.Q4_1"),
        ("?", "model"),
    ],
)
def test_a_model_name_is_taken_from_the_last_part_of_the_source(label: str, name: str) -> None:
    assert model_name_from(label) == name
    assert ExportOptions(Path("repository"), name=name).name == name


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("value", [0, -1.0, 101, float("nan"), "2", True])
def test_a_rise_of_perplexity_is_a_percentage(value: object, dtype: str) -> None:
    with pytest.raises(InvalidRequest, match=r"max_perplexity_rise: got .*, allowed: percent, more than 0 and at most 100"):
        ExportOptions(Path("repository"), dtype=dtype, max_perplexity_rise=value)  # type: ignore[arg-type]


def test_asking_for_help_does_not_import_torch() -> None:
    code = "import sys, fastserve.export.command; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(PACKAGE.parent)})


def test_nothing_on_the_serving_side_imports_export() -> None:
    for folder in ("core", "worker", "text", "tasks", "engine", "triton"):
        for path in (PACKAGE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not any(name.startswith("fastserve.export") for name in names), path


def test_a_gpu_takes_fp16_and_nothing_else() -> None:
    assert ExportOptions(Path("repository"), device="cuda", dtype="fp16").device == "cuda"
    with pytest.raises(InvalidRequest, match="fp16 for device cuda"):
        ExportOptions(Path("repository"), device="cuda")
