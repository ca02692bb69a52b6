"""The encoders the end-to-end tests serve: a tiny random one for each task, some under several settings, in one repository."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from fastserve.export.encoders.export import export_encoder
from fastserve.export.options import ExportOptions
from tests.synthetic.tiny_encoders import save_encoder


@dataclasses.dataclass(frozen=True, slots=True)
class EncoderSource:
    """A random model. ``family``: of ``tiny_encoders.TINY_ENCODERS``."""

    task: str
    family: str
    changes: dict[str, int] = dataclasses.field(default_factory=dict)
    """Settings of its configuration."""


SOURCES: dict[str, EncoderSource] = {
    "classify": EncoderSource("text-classification", "bert"),
    "tag": EncoderSource("token-classification", "distilbert"),
    "relate": EncoderSource("relation-extraction", "bert"),
    "answer": EncoderSource("question-answering", "roberta"),
    "embed": EncoderSource("feature-extraction", "modernbert"),
    "fill": EncoderSource("fill-mask", "bert"),
    "rank": EncoderSource("reranking", "electra"),
    "zero-shot": EncoderSource("zero-shot-classification", "albert"),
}
"""By name of the served model."""
SLOW, QUEUE_SIZE = "slow", 3
"""A model that runs one sequence at a time, several milliseconds each, for at most ``QUEUE_SIZE`` requests."""
SLOW_SOURCE = EncoderSource(
    "text-classification", "bert", {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 1024}
)
TWO_INSTANCES = "classify-two-instances"
"""``classify`` once more."""


def save_encoders(directory: Path) -> dict[str, Path]:
    """Save every random model as a Hugging Face folder; by name."""
    return {
        name: save_encoder(source.task, source.family, directory / name, **source.changes)
        for name, source in (SOURCES | {SLOW: SLOW_SOURCE}).items()
    }


def build_encoder_repository(sources: dict[str, Path], repository: Path) -> Path:
    """Export each source, and change config.pbtxt where a model is to be served under other settings."""
    for name, source in sources.items():
        task = (SOURCES | {SLOW: SLOW_SOURCE})[name].task
        export_encoder(str(source), ExportOptions(output=repository, name=name, task=task))
    shutil.copytree(repository / "classify", repository / TWO_INSTANCES)
    config = repository / TWO_INSTANCES / "config.pbtxt"
    config.write_text(config.read_text(encoding="utf-8").replace("count: 1", "count: 2"), encoding="utf-8")
    with (repository / SLOW / "config.pbtxt").open("a", encoding="utf-8") as stream:
        for key, value in (("max_queue_size", QUEUE_SIZE), ("max_num_seqs", 1)):
            stream.write(f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n')
    return repository
