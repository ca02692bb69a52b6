"""What a user gives FastServeServer: every mistake is one line that names it, before anything is loaded or started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastserve
from fastserve import FastServeServer
from fastserve.errors import ConfigError, ManifestError, ModelNotFound, ToolError
from fastserve.functions.function import ServedFunction
from fastserve.functions.host import FunctionHost
from fastserve.server import preparation, resources
from fastserve.server.addresses import launch_options
from fastserve.server.model_source import Checkpoint, LiveModel, find_source, task_of
from fastserve.server.resources import Resources, work_folder
from fastserve.server.server_config import ServerConfig
from fastserve.tools import ports
from fastserve.tools.launcher import PortInUse


def echo(model, texts):
    return texts


class BertForTokenClassification:
    """Looks like a model of transformers."""

    name_or_path = "someone/My BERT"

    def save_pretrained(self, folder):
        raise AssertionError("nothing is exported here")


def checkpoint(folder, architecture="BertForTokenClassification"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]} if architecture else {}))
    return folder


# --- the dictionary ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"batchsize": 8}, r"^batchsize: unknown key of config, allowed: model_path, name, task, .*batch_size"),
        ({"port": "8000"}, r"^port: got '8000', allowed: a whole number from 0 to 65535$"),
        ({"port": 65536}, "^port: got 65536"),
        ({"port": True}, "^port: got True"),
        ({"grpc_port": -1}, "^grpc_port: got -1"),
        ({"batch_size": 0}, "^batch_size: got 0, allowed: a whole number from 1"),
        ({"num_workers": 1.5}, "^num_workers: got 1.5"),
        ({"name": "a/b"}, "^name: got 'a/b', allowed: letters, digits"),
        ({"task": 3}, "^task: got 3"),
        ({"dtype": "fp8"}, "^dtype: got 'fp8', allowed: fp32 or int8"),
        ({"host": "a b"}, "^host: got 'a b'"),
        ({"log_file": 3}, "^log_file: got 3, allowed: a path"),
        ({"model_repository": ""}, "^model_repository: got ''"),
        ({"parameters": [1]}, "^parameters: got"),
        ({"parameters": {"a": True}}, "^parameters: got"),
        ({"export": {"size": 1}}, "^export: got .* allowed: options of the export by name: max_length"),
        ({"model_path": "b"}, r"^model: got both, allowed: one of model and config\['model_path'\]"),
        ([], "^config: got .* allowed: a dictionary"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_allowed(tmp_path, config, words):
    with pytest.raises(ConfigError, match=words):
        FastServeServer(checkpoint(tmp_path), echo, config)


def test_a_server_without_a_model_is_told_both_ways_to_give_one():
    with pytest.raises(ConfigError, match=r"^model: got none, allowed: one of model and config\['model_path'\]"):
        FastServeServer(None, echo)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"dtype": "int8"}, "^dtype: got 'int8', allowed: nothing, because with an inference function nothing is exported"),
        ({"tokenizer": "x"}, "^tokenizer"),
        ({"model_repository": "x"}, "^model_repository"),
        ({"export": {"stride": 3}}, "^export"),
        ({"parameters": {"max_num_seqs": 3}}, "^max_num_seqs: unknown key .* allowed: max_queue_size, default_deadline_ms"),
        ({"parameters": {"max_queue_size": 0}}, "^max_queue_size: got 0"),
    ],
)
def test_keys_that_mean_nothing_to_a_function_are_refused(tmp_path, config, words):
    with pytest.raises(ConfigError, match=words):
        FastServeServer(checkpoint(tmp_path), echo, config)


def test_a_function_that_cannot_be_called_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"^inference: got"):
        FastServeServer(checkpoint(tmp_path), lambda texts: texts)


@pytest.mark.parametrize(
    ("model", "config", "words"),
    [
        (object(), {}, "^model: got <object .* anything else needs an inference function"),
        (BertForTokenClassification(), {"task": "token-classification", "parameters": {"kv_cache_bytes": 1}}, "^kv_cache_bytes"),
        (
            BertForTokenClassification(),
            {"task": "text-generation", "parameters": {"max_num_seqs": "x"}},
            "^max_num_seqs: got 'x'",
        ),
        (BertForTokenClassification(), {"task": "x", "parameters": {"task": "y"}}, r"^parameters: got the key 'task'"),
    ],
)
def test_what_cannot_be_served_without_a_function_is_refused_at_once(model, config, words):
    with pytest.raises(ConfigError, match=words):
        FastServeServer(model, config=config)


def test_a_live_model_with_a_function_has_no_task():
    with pytest.raises(ConfigError, match=r"^task: .* gets the model as it is"):
        FastServeServer(object(), echo, {"task": "fill-mask"})


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForTokenClassification", "token-classification"),
        ("XLMRobertaForSequenceClassification", "text-classification"),
        ("ElectraForQuestionAnswering", "question-answering"),
        ("ModernBertForMaskedLM", "fill-mask"),
        ("LlamaForCausalLM", "text-generation"),
        ("GPT2LMHeadModel", "text-generation"),
        ("BertModel", "feature-extraction"),
    ],
)
def test_the_task_is_told_from_the_architecture(tmp_path, architecture, task):
    assert task_of(find_source(checkpoint(tmp_path, architecture))) == task
    assert task_of(LiveModel(type(architecture, (), {})(), "m")) == task


@pytest.mark.parametrize("architecture", ["BertForPreTraining", ""])
def test_an_architecture_that_says_no_task_asks_for_one(tmp_path, architecture):
    with pytest.raises(ConfigError, match=r"^task: cannot be told .*allowed: text-generation, text-classification"):
        task_of(find_source(checkpoint(tmp_path, architecture)))


def test_a_gguf_file_generates_text(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for path in (tmp_path / "model.gguf", tmp_path):
        assert task_of(find_source(path)) == "text-generation"


def test_the_file_of_a_graph_says_no_task(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"graph")
    with pytest.raises(ConfigError, match=r"^task: cannot be told from the model"):
        task_of(find_source(tmp_path / "model.onnx"))


def test_models_are_named_after_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(checkpoint(tmp_path / "My fine-tune"))
    assert FastServeServer(".", echo).name == "My_fine-tune"
    assert FastServeServer("someone/model", echo).name == "model"
    assert FastServeServer(BertForTokenClassification(), echo).name == "My_BERT"
    assert FastServeServer([], echo).name == "list"
    assert FastServeServer([], echo, {"name": "mine"}).name == "mine"
    assert repr(FastServeServer([], echo)) == "<FastServeServer list: not running>"


@pytest.mark.parametrize("missing", ["./nothing/here", "/nowhere", "nothing.gguf", "a/b/c"])
def test_a_path_that_is_not_there_is_told_at_once(missing):
    with pytest.raises(ModelNotFound, match="no such file or folder, and no hub id"):
        FastServeServer(missing)


def test_a_folder_that_is_no_checkpoint_is_told_by_its_missing_file(tmp_path):
    with pytest.raises(ModelNotFound, match=r"config\.json: cannot be read"):
        task_of(find_source(tmp_path))
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ModelNotFound, match=r"config\.json: is no JSON object"):
        task_of(find_source(tmp_path))


def test_a_damaged_export_is_told_at_once(tmp_path):
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "manifest.json").write_text("{}")
    for path in (tmp_path, tmp_path / "3"):
        with pytest.raises(ManifestError, match="manifest_version"):
            FastServeServer(path)


def test_a_function_is_given_no_model_that_it_could_not_use(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="no inference function can be given"):
        FastServeServer(tmp_path / "model.gguf", echo)


def test_an_extra_that_is_not_installed_is_told_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ToolError, match=r"transformers is not installed: pip install 'triton-fastserve\[export\]'"):
        preparation.load_pipeline(Checkpoint(str(checkpoint(tmp_path)), "m"), None)


# --- a server that does not run ---------------------------------------------------------------------------------------


def test_what_needs_a_running_server_says_so():
    server = FastServeServer([], echo, {"name": "mine"})
    asked = [server.wait, lambda: server.http_url, lambda: server.grpc_url, lambda: server.metrics_url, lambda: server.infer("a")]
    for ask in asked:
        with pytest.raises(ToolError, match=r"the server of mine is not running; start\(\) it first"):
            ask()
    server.stop()
    server.stop()


def test_ports_lie_next_to_the_first_where_these_are_free(monkeypatch):
    busy = {8001}
    monkeypatch.setattr(ports, "is_free", lambda host, port: port not in busy)

    def chosen(**config):
        options = launch_options(ServerConfig.parse(config), {"http://127.0.0.1:8001": "other"})
        return options.http_port, options.grpc_port, options.metrics_port

    assert chosen() == (8000, 0, 8002)
    assert chosen(port=0) == (0, 0, 0)
    assert chosen(port=9000) == (9000, 9001, 9002)
    assert chosen(port=9000, grpc_port=9002) == (9000, 9002, 0)
    assert chosen(port=9000, metrics_port=0) == (9000, 9001, 0)
    assert chosen(port=65535) == (65535, 0, 0)
    with pytest.raises(PortInUse, match=r"port: 8001 is in use on 127\.0\.0\.1 by the FastServeServer of other in this process"):
        chosen(port=8001)
    busy.add(9005)
    with pytest.raises(PortInUse, match=r"grpc_port: 9005 is in use on 127\.0\.0\.1; choose another, or 0"):
        chosen(grpc_port=9005)


def test_work_that_was_left_behind_is_swept_away_and_a_living_servers_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(resources.tempfile, "gettempdir", lambda: str(tmp_path))
    living = work_folder()
    (living.path / "file").write_text("mine")
    left = tmp_path / "fastserve-server-left"
    left.mkdir()
    (left / "file").write_text("nobody's")
    next_one = work_folder()
    assert {path.name for path in tmp_path.iterdir()} == {living.path.name, next_one.path.name}
    for directory in (living, next_one, next_one):
        directory.remove()
    assert list(tmp_path.iterdir()) == []


def test_resources_are_given_back_once_and_never_by_a_forked_process(tmp_path, monkeypatch):
    monkeypatch.setattr(resources.tempfile, "gettempdir", lambda: str(tmp_path))
    held = Resources()
    host = FunctionHost(ServedFunction(echo, None), batch_size=1, num_workers=1)
    host.start(held.work.path)
    held.host = host
    own = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: own + 1)
    held.close()
    assert held.work.path.is_dir() and held.host is host
    monkeypatch.setattr(os, "getpid", lambda: own)
    held.close()
    held.close()
    assert list(tmp_path.iterdir()) == []


def test_importing_the_server_imports_nothing_heavy_and_importing_the_package_nothing_at_all():
    code = (
        "import sys, fastserve; early = set(sys.modules); from fastserve import FastServeServer; "
        "print([m for m in ('fastserve.server', 'numpy', 'rich') if m in early], "
        "[m for m in ('torch', 'transformers', 'onnxruntime', 'tritonclient') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(fastserve.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"
    with pytest.raises(AttributeError, match="no attribute 'FastServer'"):
        fastserve.FastServer  # noqa: B018
