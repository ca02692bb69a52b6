"""The demo's decisions: when to export again, and what counts as a success."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import subprocess
import threading
import types
from pathlib import Path

import pytest
from rich.console import Console

import fastserve
from fastserve.errors import ToolError
from fastserve.manifest import MANIFEST_FILE, ModelManifest, ModelSpec, TokenizerSpec, hash_file
from fastserve.tools import demo, demo_model
from fastserve.tools.answer import Answer
from fastserve.tools.demo import DemoRequest, report
from fastserve.tools.demo_model import DemoModel, fingerprint, prepare, sound_manifest


def write_export(directory: Path, *, chat_template: str | None = "{{ messages }}") -> ModelManifest:
    """A complete export as far as its manifest can tell."""
    directory.mkdir(parents=True)
    (directory / "weights").write_bytes(b"1234")
    manifest = ModelManifest(
        task="text-generation",
        model=ModelSpec("m", "source", "llama", "fp32", 1, 10, 100),
        graphs={},
        tokenizer=TokenizerSpec("tokenizer.json", (0,), chat_template=chat_template),
        cache=None,
        position_offset=0,
        generation={},
        files={"weights": hash_file(directory / "weights")},
        proof={},
        fastserve_version=fastserve.__version__,
    )
    (directory / MANIFEST_FILE).write_text(manifest.to_json())
    return manifest


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The export commands that were run; each writes an export instead."""
    commands: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        if "failing" in command[4]:
            return subprocess.CompletedProcess(command, 1)
        write_export(
            Path(command[command.index("--output") + 1]) / command[command.index("--name") + 1] / "1", chat_template=None
        )
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(demo_model.subprocess, "run", run)
    return commands


def test_a_model_is_exported_once_and_again_when_its_files_change(tmp_path: Path, exports: list[list[str]]) -> None:
    source = tmp_path / "my finetune"
    source.mkdir()
    (source / "model.safetensors").write_bytes(b"1")
    first = prepare(str(source), tmp_path / "demo")
    assert prepare(str(source), tmp_path / "demo") == first
    assert (len(exports), first.name, first.chat) == (1, "my_finetune", False)
    (source / "model.safetensors").write_bytes(b"22")
    assert prepare(str(source), tmp_path / "demo").repository != first.repository
    assert len(exports) == 2


def test_a_damaged_export_is_not_used(tmp_path: Path) -> None:
    write_export(tmp_path / "1")
    assert sound_manifest(tmp_path / "1") is not None
    (tmp_path / "1" / "weights").write_bytes(b"1235")
    assert sound_manifest(tmp_path / "1") is None


def test_an_export_of_another_version_is_not_used(tmp_path: Path) -> None:
    manifest = write_export(tmp_path / "1")
    (tmp_path / "1" / MANIFEST_FILE).write_text(dataclasses.replace(manifest, fastserve_version="0.0.1").to_json())
    assert sound_manifest(tmp_path / "1") is None


def test_a_failed_export_ends_the_demo_with_the_sources_name(tmp_path: Path, exports: list[list[str]]) -> None:
    with pytest.raises(ToolError, match="org/failing"):
        prepare("org/failing", tmp_path)


def test_the_demo_without_its_package_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="make demo"):
        prepare(None, tmp_path)


def test_an_answer_that_ends_at_once_is_a_note_for_a_users_model_and_a_failure_for_the_packaged_one() -> None:
    shown = io.StringIO()
    for packaged, code in ((False, 0), (True, 1)):
        request = DemoRequest("one?", "gRPC")
        request.may_be_empty = not packaged
        request.answer = Answer(0.0, finish_reason="stop", num_output_tokens=1)
        assert report([request], 2.0, Console(file=shown, width=200)) == code
    assert shown.getvalue().count("note: the model ended its answer at once") == 1
    assert shown.getvalue().count("failed: the answer is empty") == 1


def test_ctrl_c_in_the_demo_does_not_wait_for_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    release, asked, left = threading.Event(), threading.Event(), threading.Event()

    class Client:
        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None:
            """What it is asked afterwards is not answered."""

        def stream(self, request: object) -> object:
            asked.set()
            release.wait(30)
            left.set()
            raise RuntimeError("the connection is closed")  # were it shown, this test would fail with its warning

    def interrupt(*_: object) -> None:
        assert asked.wait(20)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "connect", lambda url: Client())
    monkeypatch.setattr(threading.Thread, "join", interrupt)
    triton = types.SimpleNamespace(grpc_url="", http_url="")
    out = Console(file=io.StringIO(), force_terminal=False)
    monkeypatch.setattr(demo, "Live", lambda **_: contextlib.nullcontext())
    with pytest.raises(KeyboardInterrupt):
        demo.ask(triton, DemoModel(tmp_path, "m", False, False), out)  # type: ignore[arg-type]
    release.set()
    assert left.wait(20)


def test_a_hub_id_has_a_stable_fingerprint() -> None:
    assert fingerprint("org/model") == fingerprint("org/model") != fingerprint("org/other")


@pytest.mark.parametrize(("text", "error", "code"), [("Paris.", None, 0), ("  ", None, 1), ("Par", "UNAVAILABLE: full", 1)])
def test_an_empty_or_failed_answer_makes_the_demo_fail(text: str, error: str | None, code: int) -> None:
    good, other = DemoRequest("one?", "gRPC"), DemoRequest("two?", "HTTP")
    good.text, good.answer = "fine", Answer(0.0, num_output_tokens=8)
    other.text, other.error = text, error
    shown = io.StringIO()
    assert report([good, other], 2.0, Console(file=shown, width=200)) == code
    assert "8 tokens in 2.0 s, 4.0 tokens/s" in shown.getvalue()
    assert ("failed:" in shown.getvalue()) == bool(code)
