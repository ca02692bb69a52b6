"""The prefix cache on real graphs and kernels: what is taken over gives bitwise the logits of what is computed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastserve.config import EngineConfig
from fastserve.core.cost_model import CostModel
from fastserve.core.invariants import violations
from fastserve.core.request import Request, SamplingParams
from fastserve.engine.engine import Engine
from fastserve.engine.loader import load_engine
from tests.conftest import DecoderExports
from tests.doubles import FakeClock, run_to_end

FAMILIES = ("llama", "gpt2", "mistral", "gemma3")
MAX_TOKENS = 20


class Recording:
    """An engine that keeps every row of logits it draws from."""

    def __init__(self, export: Any, prefix_cache: str, kv_cache_dtype: str = "fp32") -> None:
        config = EngineConfig(
            max_batched_tokens=48,
            max_num_seqs=8,
            kv_cache_bytes=1 << 22,
            kv_cache_dtype=kv_cache_dtype,
            prefix_cache=prefix_cache,
            num_threads=1,
        )
        self.engine: Engine = load_engine(export.directory, export.manifest, config, FakeClock())
        self.rows: list[npt.NDArray[np.float32]] = []
        self.num_tokens: list[int] = []
        self._run = self.engine._runner.run
        self.engine._runner = self

    def run(self, batch: Any, kv_cache: Any) -> npt.NDArray[np.float32]:
        logits = self._run(batch, kv_cache)
        self.rows += list(logits.copy())
        self.num_tokens.append(batch.num_tokens)
        return logits

    def ask(self, prompt: list[int]) -> list[int]:
        params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)
        (outcome,) = run_to_end(self.engine, [Request(len(self.num_tokens), tuple(prompt), params)]).values()
        assert violations(self.engine.scheduler) == []
        return outcome.token_ids


def conversation(vocab_size: int) -> tuple[list[int], list[list[int]]]:
    """A beginning of five blocks and a bit, and four things said after it."""
    rng = random.Random(3)
    beginning = [rng.randrange(3, vocab_size) for _ in range(85)]
    return beginning, [[rng.randrange(3, vocab_size) for _ in range(length)] for length in (1, 11, 2, 30)]


@pytest.mark.parametrize("kv_cache_dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_from_the_cache_is_bitwise_the_computed_one(
    decoder_exports: DecoderExports, family: str, kv_cache_dtype: str
) -> None:
    """Every turn brings back the prompts and answers before it: blocks that were filled by prefills and by decodes."""
    export = decoder_exports(family)
    cached, plain = (Recording(export, mode, kv_cache_dtype) for mode in ("on", "off"))
    said, turns = conversation(export.manifest.model.vocab_size)
    for turn in turns:
        answers = [engine.ask([*said, *turn]) for engine in (cached, plain)]
        assert answers[0] == answers[1]
        said = [*said, *turn, *answers[0]]
    assert np.array_equal(np.array(cached.rows), np.array(plain.rows))
    stats = cached.engine.stats()
    assert stats.prefix_hits > stats.prefix_queries / 2 > 0
    assert sum(plain.num_tokens) - sum(cached.num_tokens) == stats.prefix_hits


def test_a_whole_prompt_from_the_cache_is_bitwise_the_computed_one(decoder_exports: DecoderExports) -> None:
    """Of 80 tokens, five full blocks, the last is run again: it reads its own key and value without writing them."""
    export = decoder_exports("llama")
    cached = Recording(export, "on")
    prompt = conversation(export.manifest.model.vocab_size)[0][:80]
    answers = [cached.ask(prompt) for _ in range(2)]
    assert answers[0] == answers[1]
    assert cached.num_tokens == [48, 32, *[1] * (MAX_TOKENS - 1), *[1] * MAX_TOKENS]
    assert np.array_equal(np.array(cached.rows[-MAX_TOKENS:]), np.array(cached.rows[-2 * MAX_TOKENS : -MAX_TOKENS]))


def test_a_sequence_that_lost_its_place_goes_on_bitwise_from_its_own_blocks(decoder_exports: DecoderExports) -> None:
    cached, plain = (Recording(decoder_exports("llama"), mode) for mode in ("on", "off"))
    prompt = conversation(decoder_exports("llama").manifest.model.vocab_size)[0]
    expected = plain.ask(prompt)
    engine = cached.engine
    engine.submit(Request(1, tuple(prompt), SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)))
    events = [event for _ in range(12) for event in engine.step()]
    (sequence,) = engine.scheduler.sequences
    engine.scheduler.preempt(sequence)
    while engine.has_work:
        events += engine.step()
    assert [event.token_id for event in events] == expected  # type: ignore[union-attr]
    assert np.array_equal(np.array(cached.rows), np.array(plain.rows))
    assert max(cached.num_tokens[12:]) <= 16  # what is not a full block


def test_warm_up_and_profile_find_nothing_and_leave_nothing_to_be_found(
    decoder_exports: DecoderExports, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps: list[int] = []
    monkeypatch.setenv("FASTSERVE_CACHE", str(tmp_path))  # what steps cost is not known yet
    monkeypatch.setattr(CostModel, "observe", lambda model, work, seconds: steps.append(work.tokens))
    export = decoder_exports("llama")
    config = EngineConfig(policy="gittins", kv_cache_bytes=1 << 22, num_threads=1)
    stats = load_engine(export.directory, export.manifest, config, FakeClock()).stats()
    assert [num_tokens for num_tokens in steps if num_tokens > 1] == [254, 252, 127, 63, 15, 16, 16, 16, 16]
    assert (stats.blocks_cached, stats.blocks_used, stats.prefix_queries) == (0, 0, 0)
