"""FastServeServer and models: exported, a folder, an object in memory, a pipeline for a function; each answers as its source."""

from __future__ import annotations

import httpx
import pytest
import torch
import transformers

from fastserve import FastServeServer
from fastserve.errors import ConfigError, ModelNotFound, ToolError, UnsupportedModel
from fastserve.export.options import ExportOptions
from fastserve.export.text_generation import export_model
from fastserve.tools.client import RequestFailed
from tests.synthetic.tiny_encoders import save_encoder
from tests.synthetic.tiny_models import llama_config, random_model, save_model, tiny_tokenizer

FREE = {"port": 0}
PROMPTS = ["Once upon a time", "the", "Grüße aus Köln"]
GREEDY = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_model(llama_config(), tmp_path_factory.mktemp("sources") / "tiny-llama")


@pytest.fixture(scope="module")
def ner(tmp_path_factory):
    return save_encoder("token-classification", "bert", tmp_path_factory.mktemp("sources") / "tiny-ner")


@pytest.fixture(scope="module")
def expected(llama):
    """What transformers generates for each prompt."""
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    texts = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**inputs, do_sample=False, min_new_tokens=8, max_new_tokens=8)
        texts.append(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def parameters_in(server):
    """Every key of the served config.pbtxt's parameters with its value."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    path = server._resources.work.path / "models" / server.name / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    return {key: value.string_value for key, value in config.parameters.items()}


def test_a_folder_is_exported_and_answers_as_its_source(llama, expected, capfd):
    config = {"model_path": str(llama), "batch_size": 3, "parameters": {"max_batched_tokens": 64}, **FREE}
    with FastServeServer(config=config) as server:
        assert server.name == "tiny-llama"
        assert server.infer(PROMPTS, **GREEDY) == expected
        assert server.infer(PROMPTS[0], **GREEDY) == expected[0]
        assert parameters_in(server) == {"max_num_seqs": "3", "max_batched_tokens": "64"}
    assert "prove against the source" in capfd.readouterr().err


def test_a_model_in_memory_is_served_as_it_is_now(expected):
    model = random_model(llama_config())
    with torch.no_grad():
        model.model.norm.weight.mul_(-1.0)
    tokenizer = tiny_tokenizer()
    with FastServeServer(model, config={"tokenizer": tokenizer, "name": "live", **FREE}) as server:
        answers = server.infer(PROMPTS, **GREEDY)
    assert answers != expected
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(**inputs, do_sample=False, min_new_tokens=8, max_new_tokens=8)
    assert answers[0] == tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_an_export_is_served_without_being_changed(llama, expected, tmp_path):
    export_model(str(llama), ExportOptions(output=tmp_path, name="exported"))
    assert FastServeServer(tmp_path / "exported").name == "exported"
    before = (tmp_path / "exported" / "config.pbtxt").read_text()
    config = {"num_workers": 2, "name": "mine", **FREE}
    with FastServeServer(tmp_path / "exported" / "1", config=config) as server:
        assert server.infer(PROMPTS, **GREEDY) == expected
        assert server.name == "mine"
        assert len([line for line in server._resources.launcher.log_tail(1000) if "mine version 1 ready" in line]) == 2
    assert (tmp_path / "exported" / "config.pbtxt").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported"]


def test_a_users_repository_keeps_the_export_until_the_source_changes(tmp_path, expected, capfd):
    source = save_model(llama_config(), tmp_path / "source")
    config = {"model_repository": tmp_path / "models", **FREE}
    shown = []
    for _ in range(2):
        with FastServeServer(source, config=config) as server:
            assert server.infer(PROMPTS, **GREEDY) == expected
            assert parameters_in(server) == {}  # the engine's defaults
        shown.append("prove against the source" in capfd.readouterr().err)
    save_model(llama_config(), source, seed=1)
    with FastServeServer(source, config=config) as server:
        assert server.infer(PROMPTS, **GREEDY) != expected
    shown.append("prove against the source" in capfd.readouterr().err)
    assert shown == [True, False, True]
    assert (tmp_path / "models" / "source" / "1" / "manifest.json").is_file()


def test_an_encoder_answers_as_the_pipeline_of_its_source(ner):
    sentences = ["the quick brown fox", "Ada lives in London", "a"]
    with FastServeServer(ner, config={"batch_size": 8, "num_workers": 2, **FREE}) as server:
        answers = server.infer(sentences, aggregation_strategy="none", ignore_labels=[])
        config = httpx.get(f"{server.http_url}/v2/models/tiny-ner/config", trust_env=False).json()
        with pytest.raises(RequestFailed, match="INVALID_ARG: aggregation_strategy: got 'some'"):
            server.infer(sentences, aggregation_strategy="some")
    assert (config["max_batch_size"], config["instance_group"][0]["count"]) == (8, 2)
    pipeline = transformers.pipeline("token-classification", model=str(ner), ignore_labels=[])
    for answer, entities in zip(answers, pipeline(sentences), strict=True):
        assert [(entity["entity"], entity["start"]) for entity in answer] == [
            (entity["entity"], entity["start"]) for entity in entities
        ]


def test_an_encoder_in_memory_is_served_with_the_tokenizer_of_its_folder(ner):
    model = transformers.AutoModelForTokenClassification.from_pretrained(ner)
    assert model.name_or_path == str(ner)
    with FastServeServer(model, config=FREE) as server:
        assert server.name == "tiny-ner"
        assert {"entity_group", "score", "word", "start", "end"} == set(server.infer("Ada lives in London")[0])


def test_a_function_gets_the_pipeline_of_a_path_loaded_once(ner):
    sentences = ["the quick brown fox", "Ada lives in London", "a"]
    pipelines = []

    def inference(model, texts):
        pipelines.append(model)
        return model(texts)

    with FastServeServer(ner, inference, {"batch_size": 2, "num_workers": 2, **FREE}) as server:
        answers = server.infer(sentences)
    assert len(set(map(id, pipelines))) == 1
    assert isinstance(pipelines[0], transformers.TokenClassificationPipeline)
    for answer, entities in zip(answers, pipelines[0](sentences), strict=True):
        assert [entity["entity"] for entity in answer] == [entity["entity"] for entity in entities]
        assert [entity["score"] for entity in answer] == pytest.approx([float(entity["score"]) for entity in entities], abs=1e-4)


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"task": "no-such-task"}, ConfigError, "task: transformers has no pipeline for no-such-task"),
        ({"task": "fill-mask"}, None, ""),
    ],
)
def test_a_pipeline_is_the_tasks(ner, config, error, words):
    server = FastServeServer(ner, lambda model, texts: [type(model).__name__] * len(texts), {**config, **FREE})
    if error is None:
        with server:
            assert server.infer("a") == "FillMaskPipeline"
        return
    with pytest.raises(error, match=words):
        server.start()


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        (
            {"config.json": '{"architectures": ["BertForTokenClassification"], "model_type": "bert"}'},
            UnsupportedModel,
            "no file named",
        ),
        ({"config.json": '{"architectures": ["BertForTokenClassification"]}'}, UnsupportedModel, "cannot load it"),
        ({}, ModelNotFound, "is this a Hugging Face folder"),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_told_in_one_line(tmp_path, files, error, words):
    folder = tmp_path / "broken"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(error, match=words) as caught:
        FastServeServer(folder, lambda model, texts: texts, FREE).start()
    assert len(str(caught.value).splitlines()) == 1


def test_settings_the_engine_refuses_are_told_before_triton_starts(llama):
    with pytest.raises(ConfigError, match="max_batched_tokens: got 256, allowed: at least max_num_seqs"):
        FastServeServer(llama, config={"batch_size": 300, **FREE}).start()


def test_a_model_in_memory_without_a_tokenizer_is_told_how_to_give_one():
    with pytest.raises(ConfigError, match="tokenizer: missing, allowed: the model's tokenizer or its path"):
        FastServeServer(random_model(llama_config()), config=FREE).start()


def test_a_name_of_another_backend_in_the_users_repository_is_not_overwritten(llama, tmp_path):
    (tmp_path / "tiny-llama").mkdir()
    (tmp_path / "tiny-llama" / "config.pbtxt").write_text('backend: "onnxruntime"')
    with pytest.raises(ToolError, match="belongs to another backend"):
        FastServeServer(llama, config={"model_repository": tmp_path, **FREE}).start()
