"""What the engine has done so far, as plain numbers that other threads may read."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot taken between two iterations. Counters only grow; gauges are the state at that moment."""

    running: int = 0
    """Requests that took part in the latest iteration."""
    waiting: int = 0
    """The others that are not swapped; those that another was preferred to may hold blocks."""
    swapped: int = 0
    """Requests whose keys and values are all in a tier below the pool, or on their way."""
    blocks_used: int = 0
    blocks_free: int = 0
    """Nobody holds them; the cached ones are among them."""
    blocks_cached: int = 0
    """Nobody holds them, but the prefix cache finds them."""
    prompt_tokens: int = 0
    """Of the requests that have drawn their first token; of an encoder, every token that was run."""
    generation_tokens: int = 0
    computed_tokens: int = 0
    """Run through the model: prompts, those computed again after a preemption too, and answers."""
    steps: int = 0
    preemptions: int = 0
    """Sequences that lost their blocks to be computed again."""
    swapped_out: int = 0
    """Sequences that lost their blocks to a tier below the pool."""
    swapped_in: int = 0
    swap_out_bytes: int = 0
    swap_in_bytes: int = 0
    swap_waits: int = 0
    """Iterations that waited for a copy."""
    blocks_swapped: int = 0
    """Blocks whose bytes are in a tier, or on their way."""
    pool_usage: float = 0.0
    """Share of the pool's blocks that is in use, 0 to 1."""
    host_usage: float = 0.0
    """Share of the host tier's slots that is in use, 0 to 1."""
    prefix_queries: int = 0
    """Tokens of the prompts that were begun with a look into the prefix cache."""
    prefix_hits: int = 0
    """Of these, the tokens that it held."""
    step_seconds: float = 0.0
    """Time spent in iterations."""
