"""What an encoder wants to know of its tokens beside their ids: their positions, and which of two texts they are of."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch

from fastserve.errors import UnsupportedModel
from fastserve.export.rotary import context_limit

_POSITION_TABLE, _TYPE_TABLE = "position_embeddings", "token_type_embeddings"
"""Last part of the names of modules that look up positions and token types."""
_REPRESENTED = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def position_offset(model: Any) -> int:
    """What the model itself adds to a token's index to get its position: 2 for RoBERTa. Raises UnsupportedModel."""
    tokens = 5
    with _looked_up(model) as positions, torch.no_grad():
        pad = getattr(model.config, "pad_token_id", None)
        model(input_ids=torch.full((1, tokens), 1 if pad == 0 else 0))  # a padding token has no position of its own
    offsets = {int(position - index) for found in positions for index, position in enumerate(found)}
    if len(offsets) > 1:
        raise UnsupportedModel(f"{model.config.model_type}: positions {positions[0]} of {tokens} tokens cannot be represented")
    return offsets.pop() if offsets else 0  # without a table they are rotary: only differences count


def longest_sequence(model: Any, offset: int) -> int:
    """Tokens the model has positions for. Raises UnsupportedModel when it does not say."""
    limits = [module.num_embeddings for _, module in _tables(model, _POSITION_TABLE)]
    longest: int = min([context_limit(model.config), *limits]) - offset
    return longest


def takes_token_types(model: Any, tokenizer: Any) -> bool:
    """Whether the graph must be told token types: the model has more than one, and transformers' tokenizer gives them."""
    return tells_texts_apart(model) and "token_type_ids" in tokenizer.model_input_names


def tells_texts_apart(model: Any) -> bool:
    """Whether the model has more than one token type."""
    accepts = "token_type_ids" in inspect.signature(model.forward).parameters
    return accepts and (getattr(model.config, "type_vocab_size", None) or 0) > 1


def check_tokenizer_inputs(model: Any, tokenizer: Any) -> None:
    """Raises UnsupportedModel when transformers' tokenizer gives the model more than a packed graph takes."""
    accepted = inspect.signature(model.forward).parameters
    if others := [name for name in tokenizer.model_input_names if name in accepted and name not in _REPRESENTED]:
        raise UnsupportedModel(f"{model.config.model_type}: its tokenizer also gives {', '.join(others)}: cannot be represented")


@contextlib.contextmanager
def _looked_up(model: Any) -> Iterator[list[list[int]]]:
    """Collects the positions that are looked up meanwhile."""
    found: list[list[int]] = []

    def note(module: Any, arguments: tuple[torch.Tensor]) -> None:
        found.append(arguments[0].reshape(-1).tolist())

    handles = [table.register_forward_pre_hook(note) for _, table in _tables(model, _POSITION_TABLE)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _tables(model: Any, kind: str) -> list[tuple[str, Any]]:
    named = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)]
    return [(name, module) for name, module in named if name.rsplit(".", 1)[-1] == kind]


class _OnlyType(torch.nn.Module):
    """Stands in for a table of token types of which only type 0 is used."""

    def __init__(self, row: torch.Tensor) -> None:
        super().__init__()
        self.row = torch.nn.Parameter(row.clone(), requires_grad=False)  # [hidden_size]

    def forward(self, token_type_ids: torch.Tensor) -> torch.Tensor:
        return self.row


def keep_first_type(model: Any) -> None:
    """Let ``model`` add the embedding of token type 0 to every token, instead of looking it up. Changes ``model``."""
    for name, table in _tables(model, _TYPE_TABLE):
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, _OnlyType(table.weight[0]))
