"""Limits of a step that are chosen when a model is loaded."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from fastserve.config import EngineConfig
from fastserve.core.request import Request, SamplingParams
from fastserve.engine.loader import load_engine
from tests.conftest import DecoderExports
from tests.doubles import run_to_end


@pytest.mark.parametrize("policy", ["auto", "fcfs"])
def test_an_engine_without_limits_measures_its_steps_and_serves_as_one_with_limits(
    decoder_exports: DecoderExports, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, policy: str
) -> None:
    monkeypatch.setenv("FASTSERVE_CACHE", str(tmp_path))
    export = decoder_exports("llama")
    params = SamplingParams(max_tokens=6, temperature=0.0)
    requests = [Request(number, tuple(range(3, 20 + number)), params) for number in range(12)]
    answers = []
    for num_seqs, num_tokens in ((0, 0), (3, 24)):
        config = EngineConfig(
            kv_cache_bytes=1 << 22, num_threads=1, policy=policy, max_num_seqs=num_seqs, max_batched_tokens=num_tokens
        )
        engine = load_engine(export.directory, export.manifest, config, time.monotonic)
        chosen, costs = engine.scheduler.limits, engine.cost_model
        assert (costs.max_num_seqs, costs.max_batched_tokens) == (chosen.max_num_seqs, chosen.max_batched_tokens)
        if num_seqs == 0:
            assert 8 <= chosen.max_num_seqs <= 64 <= chosen.max_batched_tokens <= 512
        answers.append([outcome.token_ids for _, outcome in sorted(run_to_end(engine, requests).items())])
    assert answers[0] == answers[1]


def test_a_model_is_loaded_with_the_same_limits_whatever_its_engine_learned_in_between(
    decoder_exports: DecoderExports, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FASTSERVE_CACHE", str(tmp_path))
    export = decoder_exports("llama")
    config = EngineConfig(kv_cache_bytes=1 << 22, num_threads=1, max_num_seqs=0, max_batched_tokens=0)
    chosen = []
    for base_s in (1e-6, 10.0, 1e-6):  # what costs most of a step decides: 8 sequences, or 64
        engine = load_engine(export.directory, export.manifest, config, time.monotonic)
        chosen.append((engine.scheduler.limits.max_num_seqs, engine.scheduler.limits.max_batched_tokens))
        (file,) = tmp_path.glob("costs-*.json")
        kept = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**kept, "base_s": base_s, "token_s": 1e-3}), encoding="utf-8")
    assert len(set(chosen)) == 1
