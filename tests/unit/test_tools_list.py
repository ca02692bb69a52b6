"""`fastserve list`: what lies in a repository and what a server says, sound or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from fastserve.manifest import FileEntry, GraphSpec, ModelManifest, ModelSpec
from fastserve.tools import cli, list_models
from tests.local_servers import LocalHttpServer

INDEX = [
    {"name": "llama", "version": "1", "state": "READY"},
    {"name": "broken", "version": "2", "state": "UNAVAILABLE", "reason": "no such\nfile"},
    {"name": "old", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"},
]


def add_model(repository: Path, name: str, version: str = "1", task: str = "text-generation", dtype: str = "fp32") -> Path:
    """A version folder with one file of 4 bytes and a manifest that fits it."""
    folder = repository / name / version
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"1234")
    ModelManifest(
        task=task,
        model=ModelSpec(name, "a source", "llama", dtype, 10, 5, 16),
        graphs={"decoder": GraphSpec({"fp32": "model.onnx"}, (), ())},
        tokenizer=None,
        cache=None,
        position_offset=0,
        generation={},
        files={"model.onnx": FileEntry("0" * 64, 4)},
        proof={},
        fastserve_version="0.1.0",
    ).save(folder)
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    add_model(folder, "ner", task="token-classification", dtype="int8")
    add_model(folder, "llama", "10")
    add_model(folder, "llama", "9")
    (folder / "README.md").write_text("not a model")
    return folder


@pytest.fixture
def server() -> Iterator[LocalHttpServer]:
    """Answers as a Triton with the models of INDEX."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.answer(INDEX)

        def do_GET(self) -> None:
            self.answer({"parameters": {"task": {"string_value": f"task of {self.path}"}}})

    made = LocalHttpServer(Handler)
    yield made
    made.close()


def test_a_repository_is_listed_by_name_and_number_of_version(repository: Path) -> None:
    models = list_models.in_repository(repository)
    assert [(model.name, model.version) for model in models] == [("llama", "9"), ("llama", "10"), ("ner", "1")]
    assert (models[-1].task, models[-1].dtype, models[-1].state) == ("token-classification", "int8", list_models.EXPORTED)
    assert models[0].size is not None and models[0].size > 4


def test_a_damaged_version_is_named_with_the_reason_and_makes_the_exit_code_one(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["list", "--model-repository", str(repository)]) == 0
    (repository / "ner" / "1" / "model.onnx").write_bytes(b"12")
    assert cli.main(["list", "--model-repository", str(repository)]) == 1
    out = capsys.readouterr().out
    assert "damaged" in out and "2 bytes, the manifest says 4" in out


def test_a_folder_that_no_export_made_is_shown_and_is_no_fault(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "python-model" / "1").mkdir(parents=True)
    assert cli.main(["list", "--model-repository", str(repository), "--json"]) == 0
    listed = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    assert listed["python-model"]["state"] == list_models.FOREIGN and listed["python-model"]["task"] is None


def test_an_empty_and_a_missing_repository_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--model-repository", str(tmp_path)]) == 0
    assert "No models" in capsys.readouterr().out
    assert cli.main(["list", "--model-repository", str(tmp_path / "none")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_a_server_is_asked_for_states_and_the_tasks_of_what_is_loaded(server: LocalHttpServer) -> None:
    models = {model.name: model for model in list_models.on_server(server.url)}
    assert models["llama"].task == "task of /v2/models/llama/config" and models["llama"].state == "READY"
    assert models["broken"].reason == "no such\nfile" and models["broken"].task is None
    assert models["old"].reason == ""


def test_type_and_size_of_served_models_come_from_the_repository_that_is_named(
    server: LocalHttpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_model(tmp_path, "llama")
    assert cli.main(["list", "--server", server.url, "--model-repository", str(tmp_path), "--json"]) == 1
    listed = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    assert (listed["llama"]["state"], listed["llama"]["dtype"]) == ("READY", "fp32")
    assert listed["old"]["size"] is None


def test_what_a_server_could_not_load_is_shown_in_one_line(server: LocalHttpServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--server", server.url]) == 1
    assert "broken 2: no such file\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:9", "is the server running there?"),
        ("grpc://127.0.0.1:8001", "allowed: http://host:port"),
        ("http://127.0.0.1:port", "allowed: http://host:port"),
    ],
)
def test_a_server_that_cannot_be_asked_is_one_readable_line(url: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--server", url]) == 1
    assert words in capsys.readouterr().err
