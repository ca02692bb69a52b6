"""``fastserve evaluate`` from the command line to the exit code, with a server and a source model made here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fastserve.tools import cli, evaluate
from fastserve.tools.client import ServerUnreachable
from fastserve.tools.encoder_client import EncoderRequest, Outputs
from fastserve.tools.evaluation import metric_packages, source_model
from fastserve.tools.evaluation.source_model import SourceModel
from tests.encoder_client_double import Answer, FakeEncoderClient, labelled_tokens, ranked

Serve = Callable[..., FakeEncoderClient]
Capture = pytest.CaptureFixture[str]
TAGS = {"Ada": "B-PER", "Lovelace": "I-PER", "London": "B-LOC"}
CONLL = "Ada\tB-PER\nLovelace\tI-PER\nlived\tO\n\nin\tO\nLondon\tB-LOC\n\nParis\tB-LOC\n"


def ner(tags: Mapping[str, str] = TAGS) -> Answer:
    return lambda request: labelled_tokens(request.texts["text_input"], tags)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    def install(answer: Answer, task: str = "token-classification") -> FakeEncoderClient:
        client = FakeEncoderClient(answer, task)
        monkeypatch.setattr(evaluate, "connect_encoder", client.connect)
        return client

    return install


@pytest.fixture
def conll(tmp_path: Path) -> str:
    (tmp_path / "test.conll").write_text(CONLL)
    return str(tmp_path / "test.conll")


class Sources:
    """Models by folder, instead of transformers'. ``asked``: what was loaded, with the labels of a base model."""

    def __init__(self, models: Mapping[str, Answer]) -> None:
        self.models = models
        self.asked: list[tuple[str, str, Any]] = []

    def load(self, directory: str, task: str, served: Any, labels: Any) -> Sources.Model:
        self.asked.append((directory, task, labels))
        return Sources.Model(self.models[directory], ("Its head is random.",) if labels else ())

    class Model:
        labels = ("O", "B-PER", "I-PER", "B-LOC")

        def __init__(self, answer: Answer, notes: tuple[str, ...]) -> None:
            self._answer = answer
            self.notes = notes

        def answer(self, texts: Mapping[str, str], spans: Any, labels: Any, parameters: Any) -> Outputs:
            return self._answer(EncoderRequest(texts, spans, labels, parameters))


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, Answer]], Sources]:
    def install(models: Mapping[str, Answer]) -> Sources:
        found = Sources(models)
        monkeypatch.setattr(source_model, "_loader", lambda: found.load)
        return found

    return install


def test_a_served_model_is_reported_by_entities_and_by_tags(serve: Serve, conll: str, capsys: Capture, tmp_path: Path) -> None:
    client = serve(ner())
    assert cli.main(["evaluate", "my-ner", conll, "--json", str(tmp_path / "out.json"), "--protocol", "http"]) == 0
    out = capsys.readouterr().out
    assert "token-classification" in out and "3 sentences" in out
    assert "Entities (seqeval), served" in out and "Tags (scikit-learn), served" in out
    assert client.url == "http://127.0.0.1:8000" and client.models == {"my-ner"}
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["model"], written["task"], written["sentences"], written["comparison"]) == (
        "my-ner",
        "token-classification",
        3,
        None,
    )
    assert written["reports"]["served"]["metrics"]["F1"] == pytest.approx(0.8)  # Paris is missed: precision 1, recall 2/3
    assert written["reports"]["served"]["entities"]["LOC"]["recall"] == 0.5


def test_base_fine_tuned_and_served_stand_side_by_side(
    serve: Serve, conll: str, sources: Callable[..., Sources], capsys: Capture, tmp_path: Path
) -> None:
    serve(ner())
    found = sources({"tuned": ner(), "raw": ner({})})
    arguments = ["--compare", "tuned", "--base", "raw", "--json", str(tmp_path / "out.json")]
    assert cli.main(["evaluate", "my-ner", conll, *arguments]) == 0
    out = capsys.readouterr().out
    (row,) = [line.split() for line in out.splitlines() if line.split()[:1] == ["F1"] and len(line.split()) == 5]
    assert row[1:] == ["0.0000", "0.8000", "0.8000", "+0.0000"]
    for name in ("base", "fine-tuned", "served"):
        assert f"Entities (seqeval), {name}" in out
    assert "0 of 3 sentences differ" in out and "The served model is the source model" in out
    assert "base: Its head is random." in out
    assert found.asked == [
        ("tuned", "token-classification", None),
        ("raw", "token-classification", ("O", "B-PER", "I-PER", "B-LOC")),
    ]
    written = json.loads((tmp_path / "out.json").read_text())
    assert list(written["reports"]) == ["base", "fine-tuned", "served"]
    assert written["comparison"]["within_tolerance"] is True


def test_a_served_model_that_is_not_its_source_ends_with_exit_code_one(
    serve: Serve, conll: str, sources: Callable[..., Sources], capsys: Capture
) -> None:
    serve(ner({**TAGS, "Lovelace": "O"}))
    sources({"tuned": ner()})
    assert cli.main(["evaluate", "my-ner", conll, "--compare", "tuned"]) == 1
    out = capsys.readouterr().out
    assert "1 of 3 sentences differ" in out and "NOT the source model" in out and "test.conll:1" in out
    assert cli.main(["evaluate", "my-ner", conll, "--compare", "tuned", "--tolerance", "0.4"]) == 0


def test_sentences_too_long_for_the_source_are_told_and_not_compared(
    serve: Serve, conll: str, sources: Callable[..., Sources], capsys: Capture
) -> None:
    def cut(request: EncoderRequest) -> Outputs:
        outputs = labelled_tokens(request.texts["text_input"], TAGS)
        return {name: [] for name in outputs} | {"truncated": [True]} if "Ada" in request.texts["text_input"] else outputs

    serve(ner())
    sources({"tuned": cut})
    assert cli.main(["evaluate", "my-ner", conll, "--compare", "tuned"]) == 0
    out = capsys.readouterr().out
    assert "0 of 2 sentences differ" in out and "1 sentences are longer than the source model can take" in out


def test_the_task_may_be_given_and_limits_and_parameters_are_obeyed(serve: Serve, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "d.tsv").write_text("text\tlabel\na\tx\nb\ty\nc\tx\n")
    client = serve(lambda request: ranked({"x": 0.9, "y": 0.1}), task="text-generation")
    arguments = ["--task", "text-classification", "--limit", "2", "--parameter", "truncation=true", "--concurrency", "1"]
    assert cli.main(["evaluate", "m", str(tmp_path / "d.tsv"), *arguments]) == 0
    assert [request.texts["text_input"] for request in client.requests] == ["a", "b"]
    assert client.requests[0].parameters == {"truncation": True}
    assert any(line.split() == ["accuracy", "0.5000"] for line in capsys.readouterr().out.splitlines())


def test_a_model_that_generates_is_refused_with_the_reason(serve: Serve, conll: str, capsys: Capture) -> None:
    serve(ner(), task="text-generation")
    assert cli.main(["evaluate", "m", conll]) == 1
    err = capsys.readouterr().err
    assert "perplexity" in err and "use --in-process" in err


def test_a_bad_file_is_one_line_with_its_place(serve: Serve, tmp_path: Path, capsys: Capture) -> None:
    client = serve(ner())
    (tmp_path / "bad.conll").write_text("Ada\tB-PER\nLovelace\n")
    assert cli.main(["evaluate", "m", str(tmp_path / "bad.conll")]) == 1
    err = capsys.readouterr().err
    assert "bad.conll:2: columns: got 1" in err and err.count("\n") == 1
    assert client.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "raw"], "give --compare HF_DIR as well"),
        (["--json", "/no/such/folder/out.json"], "its folder does not exist"),
        (["--json", "/"], "it is a folder"),
        (["--in-process", "--model-repository", "/no/such/repository"], "/no/such/repository/m is no exported model"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_asked(
    serve: Serve, conll: str, capsys: Capture, arguments: list[str], message: str
) -> None:
    client = serve(ner())
    assert cli.main(["evaluate", "m", conll, *arguments]) == 1
    assert message in capsys.readouterr().err
    assert client.requests == []


@pytest.mark.parametrize(
    "arguments",
    [["--columns", "1"], ["--columns", "0,1"], ["--columns", "2,2"], ["--limit", "0"], ["--tolerance", "2"], ["--task", "x"]],
)
def test_values_out_of_range_are_wrong_usage(serve: Serve, conll: str, arguments: list[str]) -> None:
    serve(ner())
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", "m", conll, *arguments])
    assert ended.value.code == 2


def test_a_server_that_goes_away_is_one_line(serve: Serve, conll: str, capsys: Capture) -> None:
    def gone(request: EncoderRequest) -> Outputs:
        raise ServerUnreachable("no answer from 127.0.0.1:8001")

    serve(gone)
    assert cli.main(["evaluate", "m", conll]) == 1
    assert "fastserve: no answer from 127.0.0.1:8001\n" in capsys.readouterr().err


def test_missing_packages_are_named_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, conll: str, capsys: Capture
) -> None:
    monkeypatch.setattr(metric_packages, "_DISTRIBUTIONS", {"a_module_nobody_has": "seqeval", "json": "json"})
    assert cli.main(["evaluate", "m", conll]) == 1
    assert capsys.readouterr().err == "fastserve: seqeval is not installed: pip install 'triton-fastserve[evaluate]'\n"


def test_numbers_that_are_none_are_null_for_programs(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t1\n")
    serve(lambda request: {"embedding": [1.0]}, task="feature-extraction")
    assert cli.main(["evaluate", "m", str(tmp_path / "d.tsv"), "--json", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["reports"]["served"]["metrics"] == {"Spearman": None, "Pearson": None}


def test_a_source_model_is_asked_with_everything_the_request_has() -> None:
    model = Sources.Model(lambda request: {"asked": [request]}, ())
    request = EncoderRequest({"text_input": "x"}, {"head": (0, 1)}, ("a",), {"top_k": 1})
    source = SourceModel(model, model.labels, ())
    assert source.answer(request) == {"asked": [request]} and source.concurrency == 1
