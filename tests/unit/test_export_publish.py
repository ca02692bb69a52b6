"""A version folder appears in the repository whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

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
