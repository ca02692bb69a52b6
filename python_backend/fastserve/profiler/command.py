"""``fastserve bench step``: the engine on an exported model in this process, and where its iterations go."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fastserve.argument_types import at_least, check_output_file
from fastserve.config import EngineConfig, parse_config
from fastserve.errors import ModelNotFound
from fastserve.manifest import MANIFEST_FILE, ModelManifest
from fastserve.tools import console
from fastserve.tools.bench.lengths import ALLOWED, lengths
from fastserve.tools.model_config import settings_of_version
from fastserve.tools.request_arguments import DEFAULT_REPOSITORY

if TYPE_CHECKING:
    from fastserve.profiler.measurement import Load, Step
    from fastserve.profiler.node_times import RunTimes

_EPILOG = """examples:
  fastserve bench step my-model                                     32 sequences of 128 + 64 tokens, all at once
  fastserve bench step ./models/my-model/1 --profile                also by kind of node and by operator
  fastserve bench step my-model --sequences 1 --input-tokens 16 --output-tokens 200 --set num_threads=1

No server runs, nothing is tokenised: these are the engine's iterations and nothing else. Settings are those of the model's
config.pbtxt, unless --set says otherwise. Answers are greedy unless
--temperature says otherwise, and none ends early. With --profile the load is run a second time, by a session that takes
notes, which slows it down: shares of that run are laid on the time of the first.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("model", help="a version folder, a model's folder (its newest version), or a name in the repository")
    parser.add_argument(
        "--model-repository",
        type=Path,
        default=DEFAULT_REPOSITORY,
        metavar="DIR",
        help=f"where a name is looked up (default: ./{DEFAULT_REPOSITORY})",
    )
    parser.add_argument("--sequences", type=at_least(1), default=32, metavar="N", help="how many (default: 32)")
    parser.add_argument("--input-tokens", type=lengths, default=lengths("128"), metavar="L", help=f"{ALLOWED} (default: 128)")
    parser.add_argument("--output-tokens", type=lengths, default=lengths("64"), metavar="L", help="likewise (default: 64)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="above 0: sampled (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of lengths, prompts and sampling (default: 0)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=setting,
        metavar="KEY=VALUE",
        help="a setting, instead of what the model's config.pbtxt says of it",
    )
    parser.add_argument("--profile", action="store_true", help="where the run itself goes, by ONNX Runtime's own profile")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures here")


def run(arguments: argparse.Namespace) -> int:
    """0. Raises :class:`FastServeError` for what cannot be loaded, run or written."""
    from fastserve.profiler.display import show
    from fastserve.profiler.report import report

    check_output_file(arguments.json)
    directory = find_version(arguments.model, arguments.model_repository)
    given, own = dict(arguments.set), settings_of_version(directory)
    manifest, config = ModelManifest.load(directory), parse_config(EngineConfig, own | given)
    load = _draw(arguments, manifest)
    steps, _ = _measure(directory, manifest, config, load, arguments)
    noted: tuple[list[Step], list[RunTimes]] | None = None
    if arguments.profile:
        with tempfile.TemporaryDirectory() as folder:
            noted = _measure(directory, manifest, config, load, arguments, profile=Path(folder) / "profile")
    figures = report(steps, noted)
    show(figures, console.stdout())
    _show_settings(own, given)
    if arguments.json is not None:
        settings = {
            "model": str(directory),
            "requests": len(load.outputs),
            "seed": arguments.seed,
            "set": given,
            "config_pbtxt": own,
        }
        arguments.json.write_text(json.dumps({**settings, **figures}, indent=1) + "\n", encoding="utf-8")
    return 0


def _show_settings(own: Mapping[str, str], given: Mapping[str, str]) -> None:
    """``own``: of the model's config.pbtxt; ``given``: by ``--set``, which counts where both say something."""
    from rich.text import Text

    kept = {key: value for key, value in own.items() if key not in given}
    for source, settings in (("config.pbtxt", kept), ("--set", given)):
        if settings:
            shown = ", ".join(f"{key}={value}" for key, value in settings.items())
            console.stdout().print(Text(f"settings of {source}: {shown}"))


def find_version(model: str, repository: Path) -> Path:
    """The folder with the manifest. Raises :class:`ModelNotFound`."""
    for folder in (Path(model), repository / model):
        if (folder / MANIFEST_FILE).exists():
            return folder
        versions = [path.parent for path in folder.glob(f"*/{MANIFEST_FILE}") if path.parent.name.isdecimal()]
        if versions:
            return max(versions, key=lambda version: int(version.name))
    raise ModelNotFound(f"{model}: neither a folder with an exported model nor the name of one in {repository}")


def _draw(arguments: argparse.Namespace, manifest: ModelManifest) -> Load:
    from fastserve.profiler.measurement import Load

    chance = random.Random(arguments.seed)
    pairs = [(arguments.input_tokens.draw(chance), arguments.output_tokens.draw(chance)) for _ in range(arguments.sequences)]
    return Load.draw(pairs, manifest.model.vocab_size, chance)


def _measure(
    directory: Path,
    manifest: ModelManifest,
    config: EngineConfig,
    load: Load,
    arguments: argparse.Namespace,
    profile: Path | None = None,
) -> tuple[list[Step], list[RunTimes]]:
    """The iterations, and with ``profile`` (where the notes go) the run of each."""
    from fastserve.core.request import SamplingParams
    from fastserve.engine.loader import load_engine
    from fastserve.profiler.measurement import run
    from fastserve.profiler.node_times import read_runs

    params = SamplingParams(temperature=arguments.temperature, seed=arguments.seed)
    with _progress("loading", sum(load.outputs)) as advance:
        engine = load_engine(directory, manifest, config, time.perf_counter, profile=profile)
        try:
            advance(0, "profiling" if profile else "measuring")
            steps = run(engine, load.requests(params), time.perf_counter, advance)
        finally:
            engine.close()
    del engine
    gc.collect()  # its pool is out of the way of the next one; a session writes its notes when it ends
    if profile is None:
        return steps, []
    (file,) = profile.parent.glob(f"{profile.name}*.json")
    return steps, read_runs(file, manifest.model.vocab_size)[-len(steps) :]


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar on stderr, gone afterwards. Gives ``advance(tokens, what)``."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console.stderr(), transient=True) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda tokens, what=None: progress.update(bar, advance=tokens, description=what)


def setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: KEY=VALUE")
    return key, value
