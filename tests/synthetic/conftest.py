"""What tests of several kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(params=["generic", "avx2", "best"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Kernels created inside the test use this instruction set (or the next lower one this processor has)."""
    monkeypatch.setenv("FASTSERVE_ISA", request.param)
    yield request.param
