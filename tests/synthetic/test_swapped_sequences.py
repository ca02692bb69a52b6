"""The golden property for sequences that are swapped through each tier, with real keys and values and the real swap thread."""

from __future__ import annotations

import random
import time

import pytest

from fastserve.config import EngineConfig
from fastserve.core.invariants import violations
from fastserve.core.request import Request, SamplingParams
from fastserve.engine.loader import load_engine
from fastserve.export.options import ExportOptions
from fastserve.export.text_generation import export_model
from fastserve.worker.kv_cache import bytes_per_block
from tests.doubles import collect
from tests.synthetic.tiny_models import llama_config, save_model

NUM_REQUESTS = 16
NUM_BLOCKS = 24
"""About a quarter of what the requests take together."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swapping")
    source = save_model(llama_config(), folder / "source")
    return export_model(str(source), ExportOptions(output=folder / "repository", name="llama"))


def requests():
    rng = random.Random(5)
    for number in range(NUM_REQUESTS):
        prompt = tuple(rng.randrange(3, 200) for _ in range(rng.randint(5, 90)))
        params = SamplingParams(max_tokens=40, temperature=rng.choice((0.0, 1.0)), seed=number)
        yield Request(number, prompt, params)


def serve(exported, **settings):
    """Serves all requests at once; their tokens, and the engine's numbers in the end."""
    size = bytes_per_block(exported.manifest.cache, 16, settings.get("kv_cache_dtype", "fp32"))
    sizes = {
        name: settings[name] * size for name in ("kv_cache_bytes", "swap_space_bytes", "swap_file_bytes") if name in settings
    }
    config = EngineConfig(max_batched_tokens=64, max_num_seqs=8, num_threads=1, **(settings | sizes))
    engine = load_engine(exported.directory, exported.manifest, config, time.monotonic)
    events = [event for request in requests() for event in engine.submit(request)]
    while engine.has_work:
        events += engine.step()
        assert violations(engine.scheduler) == []
    stats = engine.stats()
    assert (stats.blocks_used, stats.blocks_swapped) == (0, 0)
    engine.close()
    return {number: outcome.token_ids for number, outcome in collect(events).items()}, stats


TIERS = {
    "host": {"swap_space_bytes": 200},
    "file": {"swap_space_bytes": 1, "swap_file_bytes": 200},
    "both": {"swap_space_bytes": 20, "swap_file_bytes": 200},
    "none": {"preemption": "recompute"},
}


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("preemption", ["proactive", "reactive"])
@pytest.mark.parametrize("tiers", TIERS)
def test_tokens_are_the_same_with_a_quarter_of_the_pool(exported, tmp_path, tiers, preemption, dtype):
    common = {"kv_cache_dtype": dtype, "policy": "skip_join_mlfq"}
    settings = {"preemption": preemption, "swap_directory": str(tmp_path)} | TIERS[tiers]
    expected, roomy = serve(exported, kv_cache_bytes=400, **common)
    found, stats = serve(exported, kv_cache_bytes=NUM_BLOCKS, **settings, **common)
    assert found == expected
    assert (roomy.preemptions, roomy.swapped_out) == (0, 0)
    assert (stats.swapped_out > 0, stats.preemptions > 0) == ((False, True) if tiers == "none" else (True, False))
    assert stats.swapped_in == stats.swapped_out
    assert list(tmp_path.iterdir()) == []
