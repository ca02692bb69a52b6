"""The libraries that measure; they are an extra, because asking a server needs none of them."""

from __future__ import annotations

import importlib.util

from fastserve.errors import ToolError

_DISTRIBUTIONS = {"sklearn": "scikit-learn", "seqeval": "seqeval", "scipy": "scipy"}


def require_metric_packages() -> None:
    """Raise :class:`ToolError` with what to install, before anything that takes time."""
    if missing := [name for package, name in _DISTRIBUTIONS.items() if importlib.util.find_spec(package) is None]:
        verb = "is" if len(missing) == 1 else "are"
        raise ToolError(f"{', '.join(missing)} {verb} not installed: pip install 'triton-fastserve[evaluate]'")
