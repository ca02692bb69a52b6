"""For ``bench_simulate.py``: ``gittins`` with one of its parts taken away, and MLFQ with another alpha."""

from __future__ import annotations

from fastserve.core.cost_model import CostModel
from fastserve.core.policy import INNER_POLICIES
from fastserve.core.policy.gittins import GittinsIndex
from fastserve.core.policy.output_lengths import UNSEEN_HAZARD
from fastserve.core.policy.skip_join_mlfq import SkipJoinMLFQ
from fastserve.core.sequence import Sequence


class LearnsFromEndsOnly(GittinsIndex):
    """Bins that an answer went through count when it has ended, and not before."""

    def __init__(self, cost_model: CostModel, *, unseen_hazard: float = UNSEEN_HAZARD) -> None:
        super().__init__(cost_model)
        wary(self, unseen_hazard)
        self._ending = False

    def _learn_passed(self, entry: object, reached: int) -> None:
        if self._ending:
            super()._learn_passed(entry, reached)  # type: ignore[arg-type]

    def discard(self, sequence: Sequence, *, completed: bool) -> None:
        self._ending = True
        self._learn_passed(self._entries[sequence], self._lengths.bin_of_length(len(sequence.output_token_ids)))
        super().discard(sequence, completed=completed)
        self._ending = False


def wary(policy: GittinsIndex, unseen_hazard: float) -> GittinsIndex:
    """Let a bin of which nothing is known have that chance to be an answer's last."""
    policy._lengths._unseen_hazard = unseen_hazard
    for lengths in (policy._lengths, *policy._by_prompt):
        lengths.refresh()
    return policy


def _forever(policy: GittinsIndex) -> GittinsIndex:
    policy._patience = 1e9
    return policy


WARY = 0.03
"""As if all orders of magnitude were equally likely: the longer an answer has run, the longer it will."""
VARIANTS = {
    "gittins, wary": lambda cost_model: wary(GittinsIndex(cost_model), WARY),
    "gittins, ends only, wary": lambda cost_model: LearnsFromEndsOnly(cost_model, unseen_hazard=WARY),
    "gittins, ends only": LearnsFromEndsOnly,
    "gittins, brevity 0": lambda cost_model: GittinsIndex(cost_model, brevity=0.0),
    "gittins, brevity 1": lambda cost_model: GittinsIndex(cost_model, brevity=1.0),
    "gittins, ends only, wary, patient for ever": lambda cost_model: _forever(LearnsFromEndsOnly(cost_model, unseen_hazard=WARY)),
    "skip_join_mlfq, alpha 3 s": lambda cost_model: SkipJoinMLFQ(cost_model, starvation_s=3.0),
    "gittins, patient for ever": lambda cost_model: GittinsIndex(cost_model, patience=1e9),
}


def register() -> None:
    """Make them policies of this process that a simulation can be asked for."""
    INNER_POLICIES.update({name: lambda costs, _, make=make: make(costs) for name, make in VARIANTS.items()})
