"""Sequences for tests of policies: made, run and asked for without a scheduler."""

from __future__ import annotations

from fastserve.core.cost_model import CostModel
from fastserve.core.policy.protocol import Policy
from fastserve.core.request import Request, SamplingParams
from fastserve.core.sequence import Sequence
from fastserve.core.step_work import StepCosts


def make_costs(base_s: float = 0.5, token_s: float = 0.5, max_num_seqs: int = 4, max_batched_tokens: int = 1000) -> CostModel:
    """The shortest step takes 1 s unless the costs are given."""
    return CostModel(StepCosts(base_s, token_s), max_num_seqs=max_num_seqs, max_batched_tokens=max_batched_tokens)


class PolicyScene:
    """A policy and its sequences, by request id."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.sequences: dict[int, Sequence] = {}

    def add(
        self, request_id: int, prompt: int = 1, now: float = 0.0, *, max_tokens: int = 1000, priority: int = 0, tenant: str = ""
    ) -> Sequence:
        params = SamplingParams(max_tokens=max_tokens)
        sequence = Sequence(Request(request_id, (0,) * prompt, params, priority=priority, tenant=tenant))
        self.sequences[request_id] = sequence
        self.policy.add(sequence, now)
        return sequence

    def run(self, request_id: int, now: float = 0.0, *, steps: int = 1, took: float = 0.0, tokens: int | None = None) -> None:
        """Steps over all that is uncomputed (or ``tokens`` of it); each draws a token when it reaches the end."""
        sequence = self.sequences[request_id]
        for _ in range(steps):
            num_tokens = tokens or sequence.num_uncomputed
            sequence.num_computed += num_tokens
            if sequence.num_uncomputed == 0:
                sequence.output_token_ids.append(1)
            self.policy.charge(sequence, num_tokens, now, now + took)

    def end(self, request_id: int, *, completed: bool = True) -> None:
        self.policy.discard(self.sequences.pop(request_id), completed=completed)

    def order(self, now: float = 0.0) -> list[int]:
        return [sequence.request.request_id for sequence in self.policy.ordered(now)]
