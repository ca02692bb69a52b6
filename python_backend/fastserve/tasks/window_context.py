"""Which of a document's windows sees a token best."""

from __future__ import annotations

from collections.abc import Sequence

from fastserve.text.windows import Window


def widest_context(windows: Sequence[Window]) -> list[slice]:
    """For each window of a text, the tokens of the window whose answer counts: each token of the text is in one of the slices,
    that of the window in which its shorter side has most context (where two are equal, the first).

    A side that ends with the document lacks nothing, so the best window changes in the middle of what two neighbours share.
    """
    runs = [window.run(0) for window in windows]
    ends = [window.first_token + end - start for window, (start, end) in zip(windows, runs, strict=True)]
    changes = [(end + window.first_token + 1) // 2 for end, window in zip(ends, windows[1:], strict=False)]
    shares = []
    for window, (start, _), first, last in zip(windows, runs, [0, *changes], [*changes, ends[-1]], strict=True):
        shift = start - window.first_token
        shares.append(slice(first + shift, last + shift))
    return shares
