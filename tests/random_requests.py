"""The requests of random schedules: prompts, parameters, deadlines, tenants."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from fastserve.core.request import Request
from tests.beam_schedules import random_beams
from tests.constraint_doubles import SumConstraint
from tests.doubles import make_request
from tests.hashing_runner import VOCAB_SIZE

BEGINNINGS = tuple(tuple((7 * step * step + 31 * place) % VOCAB_SIZE for place in range(60)) for step in (1, 2, 3))
"""Of many prompts."""


def random_prompt(rng: random.Random) -> list[int]:
    """Tokens of its own, often after a beginning that others have too."""
    own = [rng.randrange(VOCAB_SIZE) for _ in range(rng.choice((1, 3, 4, 5, 17, 60, 130)))]
    if rng.random() < 0.4:
        return own
    return [*rng.choice(BEGINNINGS), *own][: rng.choice((8, 12, 23, 40, 64, 100))]


def random_request(rng: random.Random, request_id: int, now: float) -> Request:
    params: dict[str, Any] = {"max_tokens": rng.choice((1, 3, 8, 16, 40))}
    params["stop_token_ids"] = frozenset(rng.sample(range(VOCAB_SIZE), rng.choice((0, 2))))
    if rng.random() < 0.5:
        params |= {"temperature": rng.choice((0.3, 1.0, 2.0)), "top_k": rng.choice((0, 5)), "seed": rng.getrandbits(64)}
    if rng.random() < 0.3:
        params |= {"repetition_penalty": 1.3, "presence_penalty": 0.5}
    if params["stop_token_ids"] and rng.random() < 0.5:
        params["min_tokens"] = rng.randint(0, params["max_tokens"])
    if rng.random() < 0.3:
        params["bad_words"] = ((rng.randrange(VOCAB_SIZE),), (rng.randrange(VOCAB_SIZE), rng.randrange(VOCAB_SIZE)))
    if rng.random() < 0.3:
        longest = rng.choice((1, 5, 30))
        ends = params["stop_token_ids"]
        params["constraint"] = SumConstraint(longest, rng.randint(0, longest), start=rng.randrange(3), ends=ends)
    params["n"] = rng.choice((1, 1, 1, 2, 5))
    if rng.random() < 0.2:
        params |= random_beams(rng)
    params["return_logprobs"] = rng.random() < 0.2
    params["logprobs"] = rng.choice((None, None, 0, 3)) if "num_beams" not in params else None
    params["prompt_logprobs"] = rng.choice((None, None, 0, 2))
    deadline = now + rng.uniform(0.0, 30.0) if rng.random() < 0.1 else None
    request = make_request(request_id, random_prompt(rng), deadline=deadline, **params)
    return dataclasses.replace(request, tenant=rng.choice(("ada", "bob", "eve")), cache_salt=rng.choice(("", "", "", "salt")))
