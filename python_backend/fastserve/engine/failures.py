"""What goes wrong while an iteration is computed, as errors of the requests in it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from fastserve.core.events import Failed
from fastserve.errors import DeadlineExceeded, StepFailed

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def as_step_failure() -> Iterator[None]:
    """Around computing: whatever is raised leaves as StepFailed, so that it costs this iteration and no other."""
    try:
        yield
    except StepFailed:
        raise
    except MemoryError as error:
        raise StepFailed("not enough memory for this iteration", retryable=True) from error
    except Exception as error:
        logger.exception("an iteration failed")
        raise StepFailed(f"the iteration failed ({type(error).__name__}: {error})") from error


def deadline_passed(request_id: int) -> Failed:
    """The ending of a request that took too long."""
    return Failed(request_id, DeadlineExceeded("the deadline (deadline_ms) passed before the request finished"))
