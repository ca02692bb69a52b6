"""The order in which sequences are served; one module for each policy."""

from __future__ import annotations

from collections.abc import Callable

from fastserve.core.cost_model import CostModel
from fastserve.core.policy.fcfs import FirstComeFirstServed
from fastserve.core.policy.gittins import GittinsIndex
from fastserve.core.policy.priority import PriorityClasses
from fastserve.core.policy.protocol import Policy
from fastserve.core.policy.skip_join_mlfq import STARVATION_S, SkipJoinMLFQ
from fastserve.core.policy.vtc import VirtualTokenCounter

INNER_POLICIES: dict[str, Callable[[CostModel, float], Policy]] = {
    "fcfs": lambda cost_model, starvation_s: FirstComeFirstServed(),
    "skip_join_mlfq": lambda cost_model, starvation_s: SkipJoinMLFQ(cost_model, starvation_s=starvation_s),
    "gittins": lambda cost_model, starvation_s: GittinsIndex(cost_model),
    "vtc": lambda cost_model, starvation_s: VirtualTokenCounter(),
}
"""Made from a cost model and MLFQ's alpha, by the name used in configuration; those that may also rule inside a priority class.
The keys equal ``fastserve.config.INNER_POLICIES``, which a test checks."""

AUTOMATIC = "gittins"
"""What ``auto`` is. In simulations of two real traces, memory bound and compute bound, at loads up to 1, neither its mean
completion time nor its P95 latency for each output token was above that of first come, first served, and both were mostly much
shorter. The longest answers pay: PERFORMANCE.md has the tables."""


def make_policy(name: str, cost_model: CostModel, *, inner: str = "fcfs", starvation_s: float = STARVATION_S) -> Policy:
    """The policy called ``name``, one of ``fastserve.config.POLICIES``. ``inner``: of ``priority``, inside a class.
    ``starvation_s``: of ``skip_join_mlfq``, also as ``inner``."""
    if name == "priority":
        return PriorityClasses(lambda: INNER_POLICIES[inner](cost_model, starvation_s))
    return INNER_POLICIES[AUTOMATIC if name == "auto" else name](cost_model, starvation_s)


__all__ = ["AUTOMATIC", "INNER_POLICIES", "Policy", "PriorityClasses", "make_policy"]
