"""``fastserve evaluate`` and ``infer`` with encoders, against a real server: each task's served model is its source."""

from __future__ import annotations

import json
import random

import pytest

from fastserve.tools import cli
from tests.e2e.served_encoders import SOURCES
from tests.synthetic.tiny_encoders import LABELS, WORDS, save_encoder

ITEMS = 40
LONGER_THAN_THE_MODEL = 200
"""Words; the tiny models take 128 tokens at once."""


def words(source, count):
    return [source.choice(WORDS) for _ in range(count)]


def text(source, most=30):
    return " ".join(words(source, source.randint(3, most)))


def conll(source):
    tags = LABELS["token-classification"]
    return "\n".join(
        "".join(f"{word}\t{source.choice(tags)}\n" for word in words(source, source.randint(1, 40))) for _ in range(ITEMS)
    )


def classes(task):
    def lines(source):
        rows = [f"{text(source)}\t{text(source)}\t{source.choice(LABELS[task])}" for _ in range(ITEMS)]
        return "\n".join(["sentence1\tsentence2\tlabel", *rows])

    return lines


def zero_shot(source):
    return "\n".join(["text\tlabel", *(f"{text(source)}\t{source.choice(['city', 'film', 'food'])}" for _ in range(ITEMS))])


def relations(source):
    rows = []
    for _ in range(ITEMS):
        content, label = text(source), source.choice(LABELS["relation-extraction"])
        first, second = content.index(" "), content.rindex(" ")
        rows.append({"text": content, "head": [0, first], "tail": [second + 1, len(content)], "label": label})
    return "\n".join(map(json.dumps, rows))


def questions(source):
    def asked(number):
        context = text(source, LONGER_THAN_THE_MODEL)
        answer = [{"text": context.split()[1], "answer_start": 0}] if number % 3 else []
        return {"context": context, "qas": [{"id": str(number), "question": text(source, 8), "answers": answer}]}

    return json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": [asked(number) for number in range(ITEMS)]}]})


def pairs(source):
    return "\n".join(
        ["sentence1,sentence2,score", *(f"{text(source)},{text(source)},{source.uniform(0, 5):.2f}" for _ in range(ITEMS))]
    )


DATASETS = {
    "tag": ("data.conll", conll, "sentences"),
    "classify": ("data.tsv", classes("text-classification"), "texts"),
    "relate": ("data.jsonl", relations, "texts"),
    "answer": ("data.json", questions, "questions"),
    "embed": ("data.csv", pairs, "pairs"),
    "zero-shot": ("data.tsv", zero_shot, "texts"),
}
"""By served model: the dataset's file, what makes it, what its items are called."""


@pytest.fixture
def dataset(tmp_path):
    def make(model):
        name, lines, _ = DATASETS[model]
        (tmp_path / name).write_text(lines(random.Random(model)))
        return str(tmp_path / name)

    return make


@pytest.mark.parametrize("model", sorted(DATASETS))
def test_a_served_model_is_its_source_item_by_item(model, encoder_server, encoder_sources, dataset, tmp_path, capsys):
    out = tmp_path / "out.json"
    arguments = ["--url", encoder_server.grpc_url, "--compare", str(encoder_sources[model]), "--json", str(out)]
    assert cli.main(["evaluate", model, dataset(model), *arguments]) == 0, capsys.readouterr()
    assert f"0 of {ITEMS} {DATASETS[model][2]} differ" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert (found["task"], found["comparison"]["compared"]) == (SOURCES[model].task, ITEMS)
    assert found["comparison"]["worst_score_difference"] < 1e-4
    reports = found["reports"]
    assert reports["served"]["metrics"] == pytest.approx(reports["fine-tuned"]["metrics"], nan_ok=True)


def test_http_gives_the_same_report(encoder_server, dataset, tmp_path):
    reports = []
    for number, arguments in enumerate((["--url", encoder_server.grpc_url], ["--url", encoder_server.http_url])):
        out = tmp_path / f"{number}.json"
        assert cli.main(["evaluate", "tag", dataset("tag"), *arguments, "--json", str(out)]) == 0
        reports.append(json.loads(out.read_text())["reports"])
    assert reports[0] == reports[1]


def test_a_model_made_from_another_source_is_found_out(encoder_server, dataset, tmp_path, capsys):
    other = save_encoder("token-classification", "distilbert", tmp_path / "other", seed=1)
    assert cli.main(["evaluate", "tag", dataset("tag"), "--url", encoder_server.grpc_url, "--compare", str(other)]) == 1
    assert "NOT the source model" in capsys.readouterr().out


def test_long_texts_are_read_whole_or_cut_off_like_the_sources(encoder_server, encoder_sources, tmp_path, capsys):
    source = random.Random(0)
    rows = [" ".join(words(source, count)) for count in (5, LONGER_THAN_THE_MODEL, 9)]
    (tmp_path / "d.tsv").write_text("\n".join(["text\tlabel", *(f"{row}\tneutral" for row in rows)]))
    arguments = ["evaluate", "classify", str(tmp_path / "d.tsv"), "--url", encoder_server.grpc_url]
    compared = [*arguments, "--compare", str(encoder_sources["classify"])]
    assert cli.main(compared) == 0
    out = capsys.readouterr().out
    assert "0 of 2 texts differ" in out and "1 texts are longer than the source model" in out
    assert cli.main([*compared, "--parameter", "truncation=true"]) == 0
    assert "0 of 3 texts differ" in capsys.readouterr().out


def test_a_server_is_started_for_an_evaluation_and_gone_after_it(encoder_repository, dataset, capsys):
    arguments = ["--in-process", "--model-repository", str(encoder_repository), "--limit", "5"]
    assert cli.main(["evaluate", "tag", dataset("tag"), *arguments]) == 0
    out, err = capsys.readouterr()
    assert "5 sentences" in out and "Starting Triton with tag" in err


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_infer_shows_the_result_of_an_encoder(encoder_server, protocol, capsys):
    url = encoder_server.http_url if protocol == "http" else encoder_server.grpc_url
    assert cli.main(["infer", "classify", "ada lives in london", "--parameter", "top_k=2", "--url", url]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result) == 2 and result[0]["label"] in LABELS["text-classification"]
    asked = ["infer", "answer", "who lives ?", "where ?", "--context", "ada lives in london", "--json", "--url", url]
    assert cli.main(asked) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["question"] for line in lines] == ["who lives ?", "where ?"]
    assert all(line["result"][0]["answer"] in line["context"] for line in lines)


def test_what_the_server_refuses_is_one_line(encoder_server, tmp_path, capsys):
    assert cli.main(["infer", "classify", "x", "--parameter", "top_k=0", "--url", encoder_server.grpc_url]) == 1
    assert "INVALID_ARG: top_k: got" in capsys.readouterr().err
    (tmp_path / "d.tsv").write_text("text\tlabel\nada\tneutral\n")
    arguments = ["--parameter", "surprise=1", "--url", encoder_server.grpc_url]
    assert cli.main(["evaluate", "classify", str(tmp_path / "d.tsv"), *arguments]) == 1
    assert "d.tsv:2: INVALID_ARG: surprise: got" in capsys.readouterr().err
