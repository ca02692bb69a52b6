"""Every guard on a configuration, alone: each test fails when its guard is dropped."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama import modeling_llama

from fastserve.errors import InvalidRequest, UnsupportedModel
from fastserve.export.attention import AttentionLayer, AttentionTrace
from fastserve.export.guards import check_config, check_experts, check_layers, check_model
from fastserve.export.rotary import RotaryPlan, context_limit, freeze_frequencies, rotary_plan

LAYER = AttentionLayer(index=0, num_heads=4, kv_num_heads=2, head_size=16, scale=0.25, softcap=0.0, window=-1)


def layers(count: int = 2, **changes: Any) -> list[AttentionLayer]:
    return [dataclasses.replace(LAYER, index=index, **changes) for index in range(count)]


def llama(**settings: Any) -> Any:
    return transformers.LlamaConfig(num_hidden_layers=2, **settings)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.T5Config(), "encoder-decoder"),
        (transformers.BertConfig(), "encoder-only"),
        (transformers.ViTConfig(), "not a causal language model"),
        (transformers.GPTJConfig(), "its own modules"),
        (transformers.FalconConfig(), "its own modules"),
        (transformers.BloomConfig(), "its own modules"),
        (transformers.MptConfig(), "its own modules"),
        (transformers.Llama4TextConfig(), "chunked attention"),
        (transformers.Lfm2Config(full_attn_idxs=[2]), "layer_types"),
        (transformers.RobertaConfig(is_decoder=True), "padding id"),
        (transformers.XLMRobertaConfig(is_decoder=True), "padding id"),
        (llama(head_dim=20), "heads of 20"),
        (llama(head_dim=264), "heads of 264"),
        (llama(hidden_size=120, num_attention_heads=10), "heads of 12 "),
        (transformers.GPT2Config(add_cross_attention=True), "cross-attention"),
        (llama(alibi=True), "ALiBi"),
        (llama(num_kv_shared_layers=1), "key/value sharing"),
        (llama(use_bidirectional_attention=True), "non-causal"),
        (llama(position_embedding_type="relative_key"), "position_embedding_type"),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_a_configuration_the_graph_cannot_represent_is_refused_by_name(config: Any, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        check_config(config)
    assert str(caught.value).startswith(config.model_type)


def test_an_ordinary_decoder_passes() -> None:
    check_config(llama())
    check_layers(llama(), layers())


def test_a_layer_that_never_reached_the_attention_interface_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"1 attention layers .* has 2"):
        check_layers(llama(), layers(1))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"sliding_window": 8}, "sliding_window"),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        ({"query_pre_attn_scalar": 64}, "query_pre_attn_scalar"),
        ({"attention_multiplier": 0.5}, "attention_multiplier"),
        ({"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": False}, "scale_attn_weights"),
    ],
)
def test_a_feature_the_configuration_sets_must_reach_attention(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(UnsupportedModel, match=key):
        check_layers(llama(**settings), layers())


def test_a_window_nobody_asked_for_is_refused_too() -> None:
    with pytest.raises(UnsupportedModel, match="sliding_window"):
        check_layers(llama(), layers(window=8))


def test_windows_follow_layer_types() -> None:
    config = llama(sliding_window=8, layer_types=["sliding_attention", "full_attention"])
    mixed = [dataclasses.replace(LAYER, window=8), dataclasses.replace(LAYER, index=1)]
    check_layers(config, mixed)
    with pytest.raises(UnsupportedModel, match="sliding_window"):
        check_layers(config, layers(window=8))


def attend(features: dict[str, Any], module: Any = None, mask: torch.Tensor | None = None, key_size: int = 16) -> AttentionTrace:
    trace = AttentionTrace("tiny")
    query, key = torch.zeros(1, 4, 3, 16), torch.zeros(1, 2, 3, key_size)
    trace(module or SimpleNamespace(layer_idx=0, is_causal=True), query, key, key, mask, **features)
    return trace


def test_attention_is_described_by_what_it_was_given() -> None:
    trace = attend({"scaling": 0.5, "softcap": 30.0, "sliding_window": 8, "dropout": 0.0, "position_ids": torch.zeros(1)})
    assert trace.layers == [AttentionLayer(0, 4, 2, 16, scale=0.5, softcap=30.0, window=8)]


def test_without_a_scale_the_usual_one_holds() -> None:
    assert attend({}).layers[0].scale == 0.25


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"features": {"position_bias": torch.zeros(1)}}, "position_bias"),
        ({"features": {"is_causal": False}}, "non-causal"),
        ({"features": {}, "module": SimpleNamespace(layer_idx=0, is_causal=False)}, "non-causal"),
        ({"features": {}, "module": SimpleNamespace()}, "layer_idx"),
        ({"features": {"dropout": 0.1}}, "dropout"),
        ({"features": {}, "mask": torch.zeros(1)}, "attention_mask"),
        ({"features": {}, "key_size": 8}, "head sizes"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_attention_refuses_what_the_op_cannot_express(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        attend(**arguments)


def test_a_layer_that_attends_twice_is_refused() -> None:
    trace = attend({})
    with pytest.raises(UnsupportedModel, match="twice"):
        trace(SimpleNamespace(layer_idx=0), torch.zeros(1, 4, 3, 16), torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16), None)


def forward_without_rows(input_ids: Any, position_ids: Any) -> None: ...


def forward_without_positions(input_ids: Any, logits_to_keep: Any) -> None: ...


@pytest.mark.parametrize(
    ("supported", "forward", "reason"),
    [
        (False, forward_without_rows, "its own modules"),
        (True, forward_without_rows, "logits_to_keep"),
        (True, forward_without_positions, "position_ids"),
    ],
)
def test_a_model_class_that_cannot_be_driven_is_refused(supported: bool, forward: Any, reason: str) -> None:
    model = SimpleNamespace(_supports_attention_backend=supported, forward=forward, config=llama())
    model._can_set_experts_implementation = lambda: False
    with pytest.raises(UnsupportedModel, match=reason):
        check_model(model)


def test_experts_that_nothing_can_stand_in_for_are_refused() -> None:
    config = transformers.MixtralConfig(num_local_experts=8)
    model = SimpleNamespace(_supports_attention_backend=True, forward=forward_without_rows, config=config)
    model._can_set_experts_implementation = lambda: False
    with pytest.raises(UnsupportedModel, match=r"mixtral: a mixture of experts \(num_\w*experts=8\)"):
        check_model(model)
    with pytest.raises(UnsupportedModel, match="a mixture of experts"):
        check_experts(config)
    check_experts(llama())


def test_dynamic_rope_is_exported_up_to_its_original_length() -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    assert context_limit(llama(max_position_embeddings=2048, rope_parameters=rope)) == 2048


def test_longrope_is_exported_up_to_its_original_length() -> None:
    factors = {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64, "factor": 4.0}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 512, **factors}
    assert context_limit(llama(max_position_embeddings=2048, rope_parameters=rope)) == 512


def test_frequencies_that_depend_on_the_batch_for_each_layer_type_are_refused() -> None:
    rope = {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {"rope_type": "default"}}
    config = SimpleNamespace(model_type="odd", max_position_embeddings=64, rope_parameters=rope)
    config.get_text_config = lambda decoder: config
    with pytest.raises(UnsupportedModel, match="dynamic"):
        context_limit(config)


def test_a_model_without_a_context_length_is_refused() -> None:
    config = SimpleNamespace(model_type="odd")
    config.get_text_config = lambda decoder: config
    with pytest.raises(UnsupportedModel, match="max_position_embeddings"):
        context_limit(config)


def test_frozen_frequencies_are_no_longer_recomputed() -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    config = llama(hidden_size=64, num_attention_heads=4, max_position_embeddings=16, rope_parameters=rope)
    free, frozen = (modeling_llama.LlamaRotaryEmbedding(config) for _ in range(2))
    original = frozen.inv_freq.clone()
    freeze_frequencies(frozen)
    for module in (free, frozen):
        module(torch.zeros(1), torch.arange(40)[None])
    assert not torch.equal(free.inv_freq, original)
    assert torch.equal(frozen.inv_freq, original)


def test_a_head_that_only_shows_in_the_forward_pass_is_measured_too() -> None:
    with pytest.raises(UnsupportedModel, match="heads of 20"):
        check_layers(llama(), layers(head_size=20))


def test_a_context_without_room_for_prompt_and_answer_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="no room"):
        context_limit(llama(max_position_embeddings=1))


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
}


@pytest.mark.parametrize(
    ("asked", "plan"), [(None, RotaryPlan(16)), (9, RotaryPlan(9)), (16, RotaryPlan(16)), (17, RotaryPlan(17, 16))]
)
def test_longrope_takes_the_factors_of_the_longest_context_asked_for(asked: int | None, plan: RotaryPlan) -> None:
    assert rotary_plan(llama(max_position_embeddings=32, rope_parameters=LONGROPE), asked) == plan


def test_a_context_longer_than_the_models_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"max_model_len.*33.*2 to 32"):
        rotary_plan(llama(max_position_embeddings=32, rope_parameters=LONGROPE), 33)


@pytest.mark.parametrize(("beyond", "longest"), [(None, 1), (16, 17)])
def test_frozen_longrope_has_one_set_of_frequencies_whatever_comes(beyond: int | None, longest: int) -> None:
    config = llama(hidden_size=64, num_attention_heads=4, max_position_embeddings=32, rope_parameters=LONGROPE)
    free, frozen = (modeling_llama.LlamaRotaryEmbedding(config) for _ in range(2))
    freeze_frequencies(frozen, beyond)
    wanted = [part.clone() for part in free(torch.zeros(1), torch.arange(longest)[None])]
    for neighbour in (1, 32):
        got = frozen(torch.zeros(1), torch.arange(neighbour)[None])
        shared = min(neighbour, longest)
        assert all(torch.equal(a[:, :shared], b[:, :shared]) for a, b in zip(got, wanted, strict=True))
