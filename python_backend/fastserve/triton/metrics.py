"""The engine's numbers on Triton's /metrics page. Updated by the responder thread only: each update is a round trip."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import triton_python_backend_utils as pb_utils

from fastserve.engine.stats import EngineStats

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """A metric: its name on the page, what it says, and the field of EngineStats it shows."""

    name: str
    description: str
    field: str


GAUGES = (
    Family(
        "vllm:num_requests_running",
        "Requests that are computed: they hold KV blocks, or an encoder's next run takes them",
        "running",
    ),
    Family("vllm:num_requests_waiting", "Requests accepted that are not computed yet or not at the moment", "waiting"),
    Family(
        "vllm:num_requests_swapped", "Requests whose keys and values are in a tier below the KV pool, or on their way", "swapped"
    ),
    Family("vllm:gpu_cache_usage_perc", "Share of the KV pool's blocks in use, 0 to 1, wherever the pool is", "pool_usage"),
    Family("vllm:cpu_cache_usage_perc", "Share of the host tier in use, 0 to 1", "host_usage"),
    Family("fastserve:kv_blocks_swapped", "KV blocks whose bytes are in a tier below the pool", "blocks_swapped"),
    Family("fastserve:kv_blocks_used", "KV blocks in use", "blocks_used"),
    Family("fastserve:kv_blocks_free", "KV blocks that are free, those of the prefix cache among them", "blocks_free"),
    Family("fastserve:kv_blocks_cached", "Free KV blocks that the prefix cache finds again", "blocks_cached"),
)
COUNTERS = (
    Family(
        "vllm:prompt_tokens_total", "Prompt tokens of the requests that got their first token, or tokens encoded", "prompt_tokens"
    ),
    Family("vllm:generation_tokens_total", "Tokens generated", "generation_tokens"),
    Family("vllm:num_preemptions_total", "Sequences whose KV blocks were taken away to be recomputed", "preemptions"),
    Family("fastserve:swapped_out_total", "Sequences whose KV blocks were moved to a tier below the pool", "swapped_out"),
    Family("fastserve:swapped_in_total", "Sequences that were moved back into the pool", "swapped_in"),
    Family("fastserve:swap_out_bytes_total", "Bytes copied from the pool to the tiers below it", "swap_out_bytes"),
    Family("fastserve:swap_in_bytes_total", "Bytes copied back into the pool", "swap_in_bytes"),
    Family("fastserve:swap_waits_total", "Iterations that waited for a copy between the pool and a tier", "swap_waits"),
    Family("vllm:prefix_cache_queries_total", "Prompt tokens that were looked up in the prefix cache", "prefix_queries"),
    Family("vllm:prefix_cache_hits_total", "Prompt tokens that the prefix cache held: not computed again", "prefix_hits"),
    Family("fastserve:iterations_total", "Iterations of the model", "steps"),
    Family("fastserve:iteration_seconds_total", "Seconds spent in iterations", "step_seconds"),
)
ENDINGS = Family(
    "fastserve:requests_total", "Requests by how they ended: a finish reason, success of an encoder, or an error code", ""
)


class TritonMetrics:
    """Implements ``responder.MetricsSink``."""

    def __init__(self, model: str, version: str, instance: str) -> None:
        self._labels = {"model": model, "version": version, "instance": instance}
        self._families: dict[str, Any] = {}  # kept alive: a family that is collected takes its metrics with it
        self._gauges = {family.field: self._metric(family, pb_utils.MetricFamily.GAUGE) for family in GAUGES}
        self._counters = {family.field: self._metric(family, pb_utils.MetricFamily.COUNTER) for family in COUNTERS}
        self._endings: dict[str, Any] = {}
        self._shown: dict[str, float] = {}  # what the page says, by field of EngineStats

    def _metric(self, family: Family, kind: Any, **labels: str) -> Any:
        if family.name not in self._families:
            self._families[family.name] = pb_utils.MetricFamily(name=family.name, description=family.description, kind=kind)
        return self._families[family.name].Metric(labels=self._labels | labels)

    def update(self, stats: EngineStats) -> Iterator[None]:
        """Shows a snapshot. Only what changed is sent."""
        for field, metric in self._gauges.items():
            if getattr(stats, field) != self._shown.get(field, 0):
                metric.set(getattr(stats, field))
                self._shown[field] = getattr(stats, field)
                yield
        for field, metric in self._counters.items():
            if (growth := getattr(stats, field) - self._shown.get(field, 0)) > 0:
                metric.increment(growth)
                self._shown[field] = getattr(stats, field)
                yield

    def count_endings(self, ending: str, count: int) -> None:
        if ending not in self._endings:
            self._endings[ending] = self._metric(ENDINGS, pb_utils.MetricFamily.COUNTER, ending=ending)
        self._endings[ending].increment(count)


class NoMetrics:
    """When the server was started without metrics."""

    def update(self, stats: EngineStats) -> Iterator[None]:
        del stats
        return iter(())

    def count_endings(self, ending: str, count: int) -> None:
        del ending, count


def create_metrics(model: str, version: str, instance: str) -> TritonMetrics | NoMetrics:
    try:
        return TritonMetrics(model, version, instance)
    except pb_utils.TritonModelException as error:
        logger.warning("no metrics: %s", error)
        return NoMetrics()
