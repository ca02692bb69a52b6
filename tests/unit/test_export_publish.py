"""A version folder appears in the repository whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import fastserve
from fastserve.errors import ToolError
from fastserve.export.config_pbtxt import kv_cache_dtype_in, render_config_pbtxt
from fastserve.export.options import ExportOptions
from fastserve.export.publish import ServedCache, check_target, served_cache, staged_version
from fastserve.export.text_format import parse_text_format


def export_a_file(options: ExportOptions, content: str = "weights") -> None:
    with staged_version(options, "model") as directory:
        (directory / "model.onnx").write_text(content)


def everything_below(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def test_a_finished_version_is_published_with_a_config_and_nothing_else(tmp_path: Path) -> None:
    export_a_file(ExportOptions(tmp_path / "repository"))
    assert everything_below(tmp_path) == {
        "repository",
        "repository/model",
        "repository/model/config.pbtxt",
        "repository/model/1",
        "repository/model/1/model.onnx",
    }


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_or_ctrl_c_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), staged_version(ExportOptions(tmp_path / "repository"), "model") as directory:
        (directory / "model.onnx").write_text("half of the weights")
        raise error
    assert everything_below(tmp_path) == set()


def test_while_it_is_being_made_a_polling_triton_sees_nothing(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    with staged_version(ExportOptions(repository), "model"):
        assert everything_below(repository) == set()


def test_an_existing_version_is_refused_unless_forced(tmp_path: Path) -> None:
    options = ExportOptions(tmp_path)
    export_a_file(options, "old")
    with pytest.raises(ToolError, match="--force"):
        check_target(options, "model")
    forced = ExportOptions(tmp_path, force=True)
    export_a_file(forced, "new")
    assert (check_target(forced, "model") / "model.onnx").read_text() == "new"
    assert not [path for path in tmp_path.parent.iterdir() if path.name.startswith(".fastserve")]


def test_another_version_joins_the_first_and_the_users_config_stays(tmp_path: Path) -> None:
    export_a_file(ExportOptions(tmp_path))
    config = tmp_path / "model" / "config.pbtxt"
    config.write_text('backend: "fastserve" # edited')
    export_a_file(ExportOptions(tmp_path, version=2))
    assert config.read_text().endswith("# edited")
    assert {path.name for path in config.parent.iterdir()} == {"1", "2", "config.pbtxt"}


@pytest.mark.parametrize(("before", "after"), [("fp32", "int8"), ("int8", "fp32"), ("int4", "fp32")])
def test_a_config_that_an_export_wrote_is_written_anew_for_another_precision_and_said_so(tmp_path, before, after):
    cache_before = "fp32" if before == "fp32" else "int8"
    export_a_file(ExportOptions(tmp_path, dtype=before))
    config, options = tmp_path / "model" / "config.pbtxt", ExportOptions(tmp_path, dtype=after, force=True)
    target = check_target(options, "model")
    cache = served_cache(target, options)
    assert f"asked for kv_cache_dtype {cache_before}; it now asks for {after}" in "".join(cache.notes)
    assert cache.dtype == after
    export_a_file(options)
    assert config.read_text() == render_config_pbtxt(dtype=after)
    assert served_cache(target, options) == ServedCache(after)


def test_a_config_of_the_users_own_stays_and_what_it_says_of_the_cache_is_said(tmp_path):
    export_a_file(ExportOptions(tmp_path, dtype="int8"))
    config, options = tmp_path / "model" / "config.pbtxt", ExportOptions(tmp_path, force=True)
    config.write_text(text := config.read_text() + "# mine\n")
    target = check_target(options, "model")
    cache = served_cache(target, options)
    assert "is your own and stays: it asks for kv_cache_dtype int8, an export in fp32 for fp32" in "".join(cache.notes)
    assert cache.dtype == "int8"
    export_a_file(options)
    assert config.read_text() == text
    again = ExportOptions(tmp_path, dtype="int8", force=True)
    assert served_cache(target, again) == ServedCache("int8")


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ('parameters { key: "kv_cache_dtype" value: { string_value: "fp16" } }', "fp16"),
        ('parameters: [ {\n  key: "kv_cache_dtype"\n  value { string_value: "int8" }\n} ]', "int8"),
        ("parameters < key: 'kv_cache_dtype', value < string_value: 'in' \"t8\" > >", "int8"),
        ('parameters { value { string_value: "fp16" } key: "kv_cache_dtype" }', "fp16"),
        ('parameters { key: "kv_cache_dtype" value { # {\n string_value: "fp16" } }', "fp16"),
        ('parameters [ { key: "a" }, { key: "kv_cache_dtype"; value: { string_value: "\\x66p16" } } ]', "fp16"),
        (
            'parameters { key: "a" value { string_value: "key: \\"kv_cache_dtype\\" value { string_value: \\"int8\\" }" } }',
            "fp32",
        ),
        (
            'parameters [ { key: "a" value { string_value: "#" } }, { key: "kv_cache_dtype" value { string_value: "int8" } } ]',
            "int8",
        ),
        ('# parameters { key: "kv_cache_dtype" value: { string_value: "int8" } }', "fp32"),
        ('parameters { key: "policy" value: { string_value: "fcfs" } }', "fp32"),
    ],
)
def test_the_cache_that_a_config_asks_for_is_found_however_it_is_written(text, dtype):
    assert kv_cache_dtype_in(parse_text_format(text)) == dtype
    known = text_format.Parse(text, model_config_pb2.ModelConfig()).parameters
    assert dtype == (known["kv_cache_dtype"].string_value if "kv_cache_dtype" in known else "fp32"), "as Triton reads it"


def test_a_config_that_is_none_or_asks_for_what_no_cache_is_is_refused_before_anything_is_exported(tmp_path):
    export_a_file(ExportOptions(tmp_path))
    config, options = tmp_path / "model" / "config.pbtxt", ExportOptions(tmp_path, force=True)
    config.write_text('backend: "fastserve"\nparameters { key: "kv_cache_dtype" value: { string_value: "bf16" } }')
    with pytest.raises(ToolError, match=r"config\.pbtxt: kv_cache_dtype: got 'bf16', allowed: fp32 or fp16 or int8; mend it"):
        served_cache(check_target(options, "model"), options)
    config.write_text('backend: "fastserve"\ninput [')
    with pytest.raises(ToolError, match=r"config.pbtxt is no configuration \(line 2: got 'the end', allowed: a value\); mend it"):
        check_target(options, "model")


def test_the_backend_of_a_config_is_read_and_not_looked_for(tmp_path):
    (tmp_path / "model").mkdir()
    config, options = tmp_path / "model" / "config.pbtxt", ExportOptions(tmp_path)
    config.write_text("backend: 'fastserve'")
    check_target(options, "model")
    config.write_text('backend: "python" # not "fastserve"')
    with pytest.raises(ToolError, match="another backend"):
        check_target(options, "model")


def test_a_failed_replacement_keeps_the_old_version(tmp_path: Path) -> None:
    export_a_file(ExportOptions(tmp_path), "old")
    with pytest.raises(RuntimeError), staged_version(ExportOptions(tmp_path, force=True), "model"):
        raise RuntimeError
    assert (tmp_path / "model" / "1" / "model.onnx").read_text() == "old"


def test_a_model_of_another_backend_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.pbtxt").write_text('platform: "onnxruntime_onnx"')
    with pytest.raises(ToolError, match="another backend"):
        check_target(ExportOptions(tmp_path, force=True), "model")


def test_an_interrupt_between_the_two_renames_keeps_the_old_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_a_file(ExportOptions(tmp_path / "repository"), "old")
    rename = Path.rename

    def rename_and_be_interrupted(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        if moved.name == "replaced":
            monkeypatch.undo()
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "rename", rename_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_a_file(ExportOptions(tmp_path / "repository", force=True), "new")
    assert (tmp_path / "repository" / "model" / "1" / "model.onnx").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_what_a_killed_export_left_behind_is_swept_by_the_next(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from fastserve.export.options import ExportOptions
from fastserve.export.publish import staged_version
with staged_version(ExportOptions(Path({str(tmp_path / "repository")!r})), "model") as directory:
    os._exit(9)
"""
    package = str(Path(fastserve.__file__).parent.parent)
    killed = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": package}, check=False)
    assert killed.returncode == 9 and len(list(tmp_path.iterdir())) == 1
    export_a_file(ExportOptions(tmp_path / "repository"))
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_an_export_that_is_alive_is_not_swept(tmp_path: Path) -> None:
    with staged_version(ExportOptions(tmp_path / "repository"), "model") as alive:
        export_a_file(ExportOptions(tmp_path / "repository", version=2))
        (alive / "model.onnx").write_text("still here")


def test_a_version_that_a_killed_export_was_replacing_is_not_swept(tmp_path: Path) -> None:
    (tmp_path / ".fastserve-export-killed" / "replaced").mkdir(parents=True)
    export_a_file(ExportOptions(tmp_path / "repository"))
    assert (tmp_path / ".fastserve-export-killed" / "replaced").is_dir()


@pytest.mark.parametrize("path", ["repository", "repository/model"])
def test_a_file_where_a_folder_should_be_is_refused_before_the_export(path: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text("a file")
    with pytest.raises(ToolError, match="is a file"):
        check_target(ExportOptions(tmp_path / "repository"), "model")
    with pytest.raises(ToolError, match="is a file"):
        check_target(ExportOptions(tmp_path / "repository" / "model" / "deeper"), "model")


def test_a_folder_that_cannot_be_written_is_refused_before_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(ToolError, match="not writable"):
        check_target(ExportOptions(tmp_path / "new" / "repository"), "model")


def test_a_config_that_is_not_text_is_a_readable_error(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.pbtxt").write_bytes(b"\xff\xfe")
    with pytest.raises(ToolError, match=r"config\.pbtxt cannot be read"):
        check_target(ExportOptions(tmp_path), "model")
