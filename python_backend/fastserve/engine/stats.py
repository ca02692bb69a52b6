"""What the engine has done so far, as plain numbers that other threads may read."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot taken between two iterations. Counters only grow; gauges are the state at that moment."""

    running: int = 0
    waiting: int = 0
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
    prefix_queries: int = 0
    """Tokens of the prompts that were begun with a look into the prefix cache."""
    prefix_hits: int = 0
    """Of these, the tokens that it held."""
    step_seconds: float = 0.0
    """Time spent in iterations."""
