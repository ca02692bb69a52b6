"""Long contexts without the time to compute them: prompts whose keys and values lie in the KV pool before they are asked."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from fastserve.core.request import Request, SamplingParams
from fastserve.core.sequence import Sequence as CoreSequence
from fastserve.engine.engine import Engine

PATTERN_TOKENS = 256
Prompt = tuple[int, ...]


def draw_prompt(length: int, vocab_size: int, chance: random.Random) -> Prompt:
    return tuple(chance.randrange(vocab_size) for _ in range(length))


def place(engine: Engine, prompts: Sequence[Prompt]) -> None:
    """Let the prefix cache find the full blocks of each prompt. What they hold are copies of a short prompt's blocks, which is
    computed: real numbers in memory of their own, as many as the prompts' own would be. Answers mean nothing then; times do.

    The engine must be idle and its prefix cache on.
    """
    pool, cache = engine.scheduler.pool, engine.scheduler.prefix_cache
    pattern = _request(prompts[0][:PATTERN_TOKENS][::-1])
    engine.submit(pattern)
    while engine.has_work:
        engine.step()
    sources = cache.match(CoreSequence(pattern)).blocks
    copies: list[tuple[int, int]] = []
    for prompt in prompts:
        sequence = CoreSequence(_request(prompt))
        num_blocks = len(prompt) // pool.block_size
        sequence.block_table = pool.allocate(num_blocks)
        sequence.num_computed = num_blocks * pool.block_size
        cache.register(sequence, 0)
        copies += zip(itertools.cycle(sources), sequence.block_table, strict=False)
        pool.release(sequence.block_table)
    engine.kv_cache.copy_blocks(copies)


def _request(prompt: Prompt) -> Request:
    return Request(-1, prompt, SamplingParams(max_tokens=1, temperature=0.0))
