"""What an answer has to look like, as far as deciding needs to know: made elsewhere (``text/guidance.py``), carried here."""

from __future__ import annotations

from typing import Protocol


class Constraint(Protocol):
    """How far an answer has come in what it has to look like. A request carries one that stands at the beginning and never
    moves; every answer has its own, which moves with each token that is committed and with nothing else."""

    def fork(self) -> Constraint:
        """One that stands at the same place and moves on its own."""

    def allowed(self) -> bytes:
        """The tokens that may come next, one bit for each id, the lowest bit of a byte first; ids beyond its end may not.

        An end-of-sequence id is among them exactly when the answer is complete. Changes nothing. Raises FastServeError when
        that cannot be computed with bounded work.
        """

    def advance(self, token_id: int) -> bool:
        """Take an allowed token that is no end of sequence; whether the answer is complete and nothing may follow. Never
        raises."""
