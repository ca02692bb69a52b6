"""How large the activations of each channel become, from a pass of the source over ordinary text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.pytorch_utils import Conv1D

FloatArray = npt.NDArray[np.float32]


def channel_peaks(model: Any, texts: Sequence[Sequence[int]]) -> dict[str, FloatArray]:
    """Largest magnitudes [channels] by the name of a module: of what norms give, and of what linear layers are given.

    ``texts``: token ids of each, read one by one.
    """
    peaks: dict[str, torch.Tensor] = {}
    with _watched(model, peaks), torch.inference_mode():
        for tokens in texts:
            model(input_ids=torch.tensor([list(tokens)]), use_cache=False, logits_to_keep=1)
    return {name: values.float().numpy() for name, values in peaks.items()}


@contextmanager
def _watched(model: Any, peaks: dict[str, torch.Tensor]) -> Iterator[None]:
    def note(name: str, states: Any) -> None:
        if isinstance(states, torch.Tensor) and states.dim() > 1:
            found = states.detach().abs().reshape(-1, states.shape[-1]).amax(0)
            peaks[name] = torch.maximum(peaks[name], found) if name in peaks else found

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            handles.append(module.register_forward_pre_hook(lambda _, given, name=name: note(name, given[0])))
        elif "Norm" in type(module).__name__:
            handles.append(module.register_forward_hook(lambda _, given, states, name=name: note(name, states)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
