"""How ``make test`` divides the tests among its processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scheduling import ROOT, SHARED, group_of


@pytest.mark.parametrize(
    ("source", "group"),
    [
        ("def test_one(tmp_path): ...", "test_file.py"),
        ("def test_one(): ...\ndef test_two(tmp_path, server): ...", "server"),
        ("import pytest\n@pytest.fixture(scope='module')\ndef repository(encoder_server): ...", "encoder_server"),
        ("class TestOne:\n    def test_one(self, decoder_exports, tmp_path): ...", "decoder_exports"),
        ("def ask(server): ...\ndef test_one(tmp_path): ...", "test_file.py"),
        ("import pytest\n@pytest.fixture\ndef server(): ...\ndef test_one(server): ...", "test_file.py"),  # one of its own
    ],
)
def test_files_that_ask_for_a_shared_fixture_are_one_group_and_the_others_one_each(tmp_path: Path, source, group) -> None:
    (tmp_path / "test_file.py").write_text(source)
    assert group_of("test_file.py", tmp_path) == group


def test_a_file_that_would_join_two_groups_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test_file.py").write_text("def test_one(encoder_server): ...\ndef test_two(server): ...")
    with pytest.raises(ValueError, match=r"test_file.py asks for server and encoder_server"):
        group_of("test_file.py", tmp_path)


def test_every_shared_fixture_is_asked_for_by_several_files() -> None:
    groups = [group_of(str(file.relative_to(ROOT))) for file in (ROOT / "tests").rglob("test_*.py")]
    assert min(groups.count(fixture) for fixture in SHARED) >= 2
