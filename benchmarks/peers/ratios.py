"""How our rows stand to the other engines'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rows import Row

Figures = Mapping[Row, Mapping[str, Any] | str]
"""Of each row of a load, or the reason why there are none."""
THROUGHPUT, LATENCY = "tokens_per_s", "completion_mean"


def best(figures: Figures, name: str, precision: str | None = None) -> tuple[Row, float] | None:
    """The peer (at this precision, if given) with the most tokens/s, or the least of any other figure."""
    measured = {row: found[name] for row, found in figures.items() if not row.ours and not isinstance(found, str)}
    eligible = [(row, figure) for row, figure in measured.items() if precision in (None, row.precision)]
    choose = max if name == THROUGHPUT else min
    return choose(eligible, key=lambda pair: pair[1]) if eligible else None


def lines(figures: Figures) -> list[str]:
    """For each row of ours how it stands to the best peers."""
    return [
        f"{row.name}: {_against(row, found, figures)}"
        for row, found in figures.items()
        if row.ours and not isinstance(found, str)
    ]


def _against(row: Row, found: Mapping[str, Any], figures: Figures) -> str:
    wanted = {
        f"the tokens/s of the best {row.precision} peer": (THROUGHPUT, row.precision),
        "those of the best peer at any precision": (THROUGHPUT, None),
        f"the shortest mean JCT of any {row.precision} peer": (LATENCY, row.precision),
        "that of any peer": (LATENCY, None),
    }
    pairs = [(words, name, best(figures, name, precision)) for words, (name, precision) in wanted.items()]
    parts = [f"{found[name] / peer[1]:.2f} x {words} ({peer[0].name})" for words, name, peer in pairs if peer]
    return ", ".join(parts) or "no peer to compare with"
