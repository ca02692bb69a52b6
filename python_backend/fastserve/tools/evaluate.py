"""``fastserve evaluate``: how well a served model does on a dataset, and whether it is the model it was made from."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from fastserve.argument_types import at_least, check_output_file
from fastserve.config import GENERATION_TASK
from fastserve.errors import ModelNotFound, ToolError
from fastserve.manifest import ModelManifest
from fastserve.tools import console
from fastserve.tools.encoder_client import EncoderClient, connect_encoder, task_of
from fastserve.tools.encoder_infer import candidate_labels, parameter
from fastserve.tools.evaluation.comparison import Comparison, Tolerance, compare, default_tolerance
from fastserve.tools.evaluation.datasets import EVALUATED_TASKS, FORMATS, DatasetOptions, load_dataset
from fastserve.tools.evaluation.evaluation_task import EvaluationTask, Report
from fastserve.tools.evaluation.metric_packages import require_metric_packages
from fastserve.tools.evaluation.prediction import Predictions, Predictor, ServedModel, predict
from fastserve.tools.evaluation.progress import progress_bar
from fastserve.tools.launcher import LaunchOptions, TritonLauncher
from fastserve.tools.request_arguments import DEFAULT_REPOSITORY, add_server_arguments, server_url

_EPILOG = """examples:
  fastserve evaluate my-ner test.conll                         CoNLL: words in the first column, tags in the last
  fastserve evaluate my-ner test.conll --compare ./my-ner-finetuned --base ./my-base-model
  fastserve evaluate my-classifier test.tsv --text-column sentence --label-column label --json report.json
  fastserve evaluate my-qa dev-v2.0.json --limit 500
  fastserve evaluate my-ner test.conll --in-process            no server is running: one is, while this does
  fastserve evaluate my-llm book.txt --in-process --compare ./my-llm-finetuned     perplexity on a plain text, without Triton

With --compare, the exit code is 1 when the served model differs from its source in more than the tolerated share of the items,
or, for a text-generation model, in its perplexity by more than the tolerated share of it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("model", help="name of the model on the server")
    parser.add_argument("dataset", type=Path, help="a file; see --format")
    add_server_arguments(parser)
    parser.add_argument("--in-process", action="store_true", help="run the model of --model-repository only for this")
    parser.add_argument(
        "--model-repository",
        type=Path,
        metavar="DIR",
        help="for --in-process (default: ./model_repository); its manifest also says how --compare has to be done",
    )
    parser.add_argument("--task", choices=EVALUATED_TASKS, metavar="TASK", help="default: what the server says the model is for")
    parser.add_argument(
        "--limit", type=at_least(1), metavar="N", help="the first N items only (for perplexity: windows of the text)"
    )
    parser.add_argument(
        "--concurrency", type=at_least(1), default=16, metavar="N", help="requests at the same time (default: 16)"
    )
    parser.add_argument(
        "--parameter", action="append", default=[], type=parameter, metavar="NAME=VALUE", help="sent with every request"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything that was found here")
    _add_dataset_arguments(parser.add_argument_group("dataset", "what is not given is found out"))
    _add_comparison_arguments(parser.add_argument_group("comparison", "runs the source models here, with torch"))


def _add_dataset_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--format", choices=FORMATS, help="default: by the file's name and beginning")
    group.add_argument(
        "--columns", type=_columns, default=(1, -1), metavar="WORD,TAG", help="of CoNLL, from 1, or from the end with -1 (1,-1)"
    )
    group.add_argument("--text-column", metavar="NAME")
    group.add_argument("--pair-column", metavar="NAME", help="of the second text")
    group.add_argument("--label-column", metavar="NAME", help="of the right label, number, or similarity")
    group.add_argument("--no-header", action="store_true", help="a TSV or CSV whose columns are called 1, 2, ...")
    group.add_argument("--labels", type=candidate_labels, default=(), metavar="A,B,...", help="names of the labels 0, 1, ...")
    group.add_argument("--candidate-labels", type=candidate_labels, default=(), metavar="A,B,...", help="for zero-shot")


def _add_comparison_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--compare", metavar="HF_DIR", help="the fine-tuned model the served one was made from")
    group.add_argument("--base", metavar="HF_DIR", help="the model before it was fine-tuned; with --compare")
    group.add_argument(
        "--tolerance",
        type=_fraction,
        metavar="SHARE",
        help="of items that may differ (default: 0; 0.05 when served as int8); of perplexity: relative (default: 1e-4)",
    )
    group.add_argument(
        "--score-tolerance",
        type=_fraction,
        metavar="X",
        help="how far apart scores may be (default: 1e-4; as int8 any distance, or 0.05 where the answer is a number)",
    )


def run(arguments: argparse.Namespace) -> int:
    """0; 1 when the served model is not its source. Raises :class:`ToolError` for what cannot be evaluated."""
    if arguments.base is not None and arguments.compare is None:
        raise ToolError("--base is shown beside the fine-tuned model: give --compare HF_DIR as well")
    check_output_file(arguments.json)
    manifest: ModelManifest | None = None  # of a server nobody says where its models are, it is not known
    if arguments.in_process or arguments.model_repository is not None:
        directory = _version_folder(arguments.model_repository or DEFAULT_REPOSITORY, arguments.model)
        manifest = ModelManifest.load(directory)
        if arguments.in_process and arguments.task is None and manifest.task == GENERATION_TASK:
            from fastserve.tools.evaluation.language_model import evaluate_language_model

            return evaluate_language_model(arguments, directory, manifest)
    require_metric_packages()
    task_name, task, served, seconds = _ask_served(arguments, manifest)
    return _conclude(arguments, manifest, task_name, task, (served, seconds))


def _ask_served(
    arguments: argparse.Namespace, manifest: ModelManifest | None
) -> tuple[str, EvaluationTask[Any], Predictions, float]:
    """(task's name, the evaluation, the served model's predictions, the seconds they took)."""
    if manifest is None or not arguments.in_process:
        with connect_encoder(server_url(arguments)) as client:
            task_name = arguments.task or task_of(client, arguments.model)
            task = load_dataset(arguments.dataset, task_name, _dataset_options(arguments))
            return task_name, task, *_timed(arguments, task, client)
    task_name = arguments.task or manifest.task
    task = load_dataset(arguments.dataset, task_name, _dataset_options(arguments))
    console.stderr().print(f"Starting Triton with {arguments.model} ...", style="dim")
    options = LaunchOptions(model_control_mode="explicit", load_models=(arguments.model,))
    repository = arguments.model_repository or DEFAULT_REPOSITORY
    with TritonLauncher(repository, options) as triton, connect_encoder(triton.grpc_url) as client:
        return task_name, task, *_timed(arguments, task, client)


def _timed(arguments: argparse.Namespace, task: EvaluationTask[Any], client: EncoderClient) -> tuple[Predictions, float]:
    started = time.monotonic()
    served = _predict(task, ServedModel(client, arguments.model, arguments.concurrency), "served")
    return served, time.monotonic() - started


def _conclude(
    arguments: argparse.Namespace,
    manifest: ModelManifest | None,
    task_name: str,
    task: EvaluationTask[Any],
    answered: tuple[Predictions, float],
) -> int:
    from fastserve.tools.evaluation import display

    served, seconds = answered
    reports: dict[str, Report] = {}
    comparison: Comparison | None = None
    if arguments.compare is not None:
        reports, comparison = _source_reports(arguments, manifest, task_name, task, served)
    reports[display.SERVED] = task.report(served.values)
    evaluation = display.Evaluation(
        arguments.model, arguments.dataset, task_name, task.item_name, len(task.places), seconds, reports, comparison
    )
    display.show(evaluation, console.stdout())
    if arguments.json is not None:
        display.write_json(evaluation.as_json(), arguments.json)
    return 0 if comparison is None or comparison.within_tolerance else 1


def _source_reports(
    arguments: argparse.Namespace,
    manifest: ModelManifest | None,
    task_name: str,
    task: EvaluationTask[Any],
    served: Predictions,
) -> tuple[dict[str, Report], Comparison]:
    from fastserve.tools.evaluation import display
    from fastserve.tools.evaluation.source_model import load_source_model

    spec = None if manifest is None else manifest.encoder
    source_model = load_source_model(arguments.compare, task_name, spec)
    source = _predict(task, source_model, display.FINE_TUNED)
    reports = {display.FINE_TUNED: task.report(source.values)}
    if arguments.base is not None:
        base_model = load_source_model(arguments.base, task_name, spec, source_model.labels)
        base = task.report(_predict(task, base_model, display.BASE).values)
        notes = (*base.notes, *base_model.notes)
        reports = {display.BASE: Report(base.metrics, base.texts, base.details, notes), **reports}
    return reports, compare(task, served, source, _tolerance(arguments, manifest, numeric=task.is_numeric(served.values)))


def _predict(task: EvaluationTask[Any], predictor: Predictor, name: str) -> Predictions:
    with progress_bar(name, len(task.places)) as advance:
        return predict(task, predictor, advance)


def _dataset_options(arguments: argparse.Namespace) -> DatasetOptions:
    return DatasetOptions(
        form=arguments.format,
        columns=arguments.columns,
        text_column=arguments.text_column,
        pair_column=arguments.pair_column,
        label_column=arguments.label_column,
        header=not arguments.no_header,
        labels=arguments.labels,
        candidate_labels=arguments.candidate_labels,
        limit=arguments.limit,
        parameters=dict(arguments.parameter),
    )


def _tolerance(arguments: argparse.Namespace, manifest: ModelManifest | None, *, numeric: bool) -> Tolerance:
    """What was given, else what the served model's arithmetic may change; a server does not say what that is."""
    usual = default_tolerance("fp32" if manifest is None else manifest.model.dtype, numeric=numeric)
    return Tolerance(
        usual.share if arguments.tolerance is None else arguments.tolerance,
        usual.score if arguments.score_tolerance is None else arguments.score_tolerance,
    )


def _version_folder(repository: Path, model: str) -> Path:
    """Of the newest version, which is the one Triton loads. Raises :class:`ModelNotFound`."""
    versions = [int(folder.name) for folder in (repository / model).glob("*") if folder.name.isdecimal() and folder.is_dir()]
    if not versions:
        raise ModelNotFound(f"{repository / model} is no exported model; `fastserve export` makes one")
    return repository / model / str(max(versions))


def _columns(text: str) -> tuple[int, int]:
    try:
        word, tag = (int(column) for column in text.split(","))
        if 0 in (word, tag) or word == tag:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: two columns, from 1 or from the end: 1,4 or 1,-1") from None
    return word, tag


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: a number from 0 to 1")
    return value
