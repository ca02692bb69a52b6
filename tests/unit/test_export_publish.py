"""A version folder appears in the repository whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastserve
from fastserve.errors import ToolError
from fastserve.export.options import ExportOptions
from fastserve.export.publish import check_target, staged_version


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
