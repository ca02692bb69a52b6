"""Times as traces of requests write them."""

from __future__ import annotations

import datetime


def timestamp_seconds(text: str) -> float:
    """Seconds of a date and time such as 2023-11-16 18:15:46.6805900, UTC unless it says otherwise. Its fraction may have more
    digits than Python reads. Raises ValueError."""
    whole, _, fraction = text.strip().partition(".")
    at = datetime.datetime.fromisoformat(whole)
    if at.tzinfo is None:
        at = at.replace(tzinfo=datetime.timezone.utc)
    return at.timestamp() + (float(f"0.{fraction}") if fraction else 0.0)
