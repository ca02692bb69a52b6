"""The one attention function that stands in for every architecture's own while a model is probed or traced.

transformers hands it query, key and value already projected, q/k-normed and rotated, plus whatever else the architecture
wants of its attention (a window, a soft cap, ...). What it cannot express it refuses by name. Which node it emits is up to the
inputs of the graph: paged for decoders, here; packed for encoders, in ``encoders/packed_attention.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NoReturn, Protocol

import torch
from transformers import AttentionInterface

from fastserve.errors import UnsupportedModel, first_line

IMPLEMENTATION = "fastserve"
DOMAIN = "fastserve"
OPERATOR = "PagedAttention"
NO_WINDOW = -1

_HARMLESS = frozenset(
    {
        "cache_position",
        "deterministic",
        "output_attentions",
        "output_hidden_states",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)
"""Keyword arguments that pass through attention without changing what it computes."""


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionLayer:
    """One attention call, as the op's attributes. ``window``: a query at p sees keys > p - window, and if attention is not
    causal only keys < p + window; -1: all of them. ``index``: of a decoder's layer its cache's, else the order of the calls,
    because layers may share a module."""

    index: int
    num_heads: int
    kv_num_heads: int
    head_size: int
    scale: float
    softcap: float
    window: int


class AttentionInputs(Protocol):
    """What the attention of a graph reads beside query, key and value."""

    def emit(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,  # this and the next two [num_tokens, heads * head_size], the result as query
        key: torch.Tensor,
        value: torch.Tensor,
        head_sink: torch.Tensor | None,  # [num_heads], the logit of a key without a value
    ) -> torch.Tensor:
        """The node of one layer. Raises UnsupportedModel for what the operator cannot do."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class PagedInputs:
    """The graph's paging inputs; ``key_cache`` and ``value_cache`` by layer."""

    cumulative_sequence_length: torch.Tensor  # int32 [num_seqs + 1]
    past_seqlens: torch.Tensor  # int32 [num_seqs]
    block_table: torch.Tensor  # int32 [num_seqs, max_blocks]
    slot_mapping: torch.Tensor  # int32 [num_tokens]
    key_cache: list[torch.Tensor]  # of the layouts of the device
    value_cache: list[torch.Tensor]
    domain: str = DOMAIN

    def emit(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        head_sink: torch.Tensor | None,
    ) -> torch.Tensor:
        """A PagedAttention node: ours, or with :attr:`domain` "com.microsoft" ONNX Runtime's, whose inputs and attributes ours
        mirrors."""
        cos_cache = sin_cache = None  # rotation is part of the graph
        operands = [query, key, value, self.key_cache[layer.index], self.value_cache[layer.index]]
        operands += [self.cumulative_sequence_length, self.past_seqlens, self.block_table]
        return torch.onnx.ops.symbolic(
            f"{self.domain}::{OPERATOR}",
            [*operands, cos_cache, sin_cache, self.slot_mapping, head_sink],
            {
                "num_heads": layer.num_heads,
                "kv_num_heads": layer.kv_num_heads,
                "scale": layer.scale,
                "softcap": layer.softcap,
                "local_window_size": layer.window,
                "do_rotary": 0,
            },
            dtype=query.dtype,
            shape=query.shape,
            version=1,
        )


class AttentionTrace:
    """Records the attention layers of one forward pass; emits the op when :attr:`inputs` are set, zeros otherwise.

    ``causal``: what every layer has to be.
    """

    def __init__(self, model_type: str, *, causal: bool = True) -> None:
        self._model_type = model_type
        self._causal = causal
        self.inputs: AttentionInputs | None = None
        self.layers: list[AttentionLayer] = []

    def begin(self, inputs: AttentionInputs | None) -> None:
        """Start a forward pass."""
        self.inputs = inputs
        self.layers = []

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,  # [1, num_heads, num_tokens, head_size]
        key: torch.Tensor,  # [1, kv_num_heads, num_tokens, head_size]
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **features: Any,
    ) -> tuple[torch.Tensor, None]:
        """transformers' attention interface. Returns [1, num_tokens, num_heads, head_size]. Raises UnsupportedModel."""
        if attention_mask is not None:
            self._refuse("attention_mask (it makes a mask or bias of its own)")
        head_sink = features.pop("s_aux", None)
        layer = self._describe(module, query, key, value, features)
        self.layers.append(layer)
        num_tokens = query.shape[2]
        if self.inputs is None:
            return query.new_zeros(1, num_tokens, layer.num_heads, layer.head_size), None
        output = self.inputs.emit(layer, _flat(query), _flat(key), _flat(value), head_sink)
        return output.reshape(1, num_tokens, layer.num_heads, layer.head_size), None

    def _describe(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, features: dict[str, Any]
    ) -> AttentionLayer:
        index = self._cache_index(module) if self._causal else len(self.layers)
        if key.shape != value.shape or key.shape[3] != query.shape[3]:
            self._refuse(f"head sizes of query, key and value differ ({query.shape[3]}, {key.shape[3]}, {value.shape[3]})")
        scaling, softcap, window = (features.pop(name, None) for name in ("scaling", "softcap", "sliding_window"))
        if (not self._causal) in (features.pop("is_causal", None), getattr(module, "is_causal", None)):
            self._refuse("non-causal attention" if self._causal else "causal attention")
        if features.pop("dropout", 0.0):
            self._refuse("dropout at inference")
        for name, feature in features.items():
            if name not in _HARMLESS and feature is not None and feature is not False:
                self._refuse(f"{name} (given to attention layer {index})")
        return AttentionLayer(
            index=index,
            num_heads=int(query.shape[1]),
            kv_num_heads=int(key.shape[1]),
            head_size=int(query.shape[3]),
            scale=float(scaling) if scaling is not None else 1.0 / math.sqrt(int(query.shape[3])),
            softcap=float(softcap or 0.0),
            window=int(window) if window is not None else NO_WINDOW,
        )

    def _cache_index(self, module: Any) -> int:
        index = getattr(module, "layer_idx", None)
        if index is None:
            self._refuse("an attention module without layer_idx")
        if index in {layer.index for layer in self.layers}:
            self._refuse(f"layer {index} attends twice (cross-attention or shared layers)")
        return int(index)

    def _refuse(self, feature: str) -> NoReturn:
        raise UnsupportedModel(f"{self._model_type}: cannot represent {feature}")


def _flat(states: torch.Tensor) -> torch.Tensor:
    """[1, heads, num_tokens, head_size] -> [num_tokens, heads * head_size]."""
    return states.transpose(1, 2).reshape(states.shape[2], states.shape[1] * states.shape[3])


@contextlib.contextmanager
def attention_replaced(model: Any, trace: AttentionTrace) -> Iterator[None]:
    """Let ``trace`` be ``model``'s attention. No mask function is registered, which is how transformers is told to make
    no mask. On the way out the registry and the model are as before, whatever happened."""
    previous = model.config._attn_implementation
    AttentionInterface.register(IMPLEMENTATION, trace)
    try:
        model.set_attn_implementation(IMPLEMENTATION)
        yield
    finally:
        model.set_attn_implementation(previous)
        AttentionInterface._global_mapping.pop(IMPLEMENTATION, None)


def probe(model: Any, *, causal: bool = True) -> list[AttentionLayer]:
    """The attention layers of ``model`` in order of use, from one short forward pass. Raises UnsupportedModel."""
    trace = AttentionTrace(model.config.model_type, causal=causal)
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    with attention_replaced(model, trace), torch.no_grad():
        try:
            model(input_ids=tokens, position_ids=torch.arange(3)[None], use_cache=False)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UnsupportedModel(f"{model.config.model_type}: its forward pass fails: {first_line(error)}") from error
    return trace.layers
