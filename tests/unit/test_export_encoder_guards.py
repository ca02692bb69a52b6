"""Every guard on an encoder, alone, and what its proof and its measurement make of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fastserve.core.encoding import TokenSequence
from fastserve.errors import ProofFailed, UnsupportedModel
from fastserve.export.attention import AttentionLayer, AttentionTrace
from fastserve.export.encoders.batch_size import best_size, measure
from fastserve.export.encoders.guards import check_encoder_config
from fastserve.export.encoders.heads import HEADS, Rows, rows_read
from fastserve.export.encoders.packed_attention import PackedInputs, reach
from fastserve.export.encoders.proof import EncoderReference, judge_encoder, judge_int8, likeness
from fastserve.export.guards import check_layers
from fastserve.manifest import EncoderSpec, ModelManifest
from tests.doubles import make_manifest

LAYER = AttentionLayer(index=0, num_heads=2, kv_num_heads=2, head_size=16, scale=0.25, softcap=0.0, window=-1)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.BartConfig(), "encoder-decoder"),
        (transformers.LlamaConfig(), "causal decoder"),
        (transformers.BertConfig(is_decoder=True), "is_decoder"),
        (transformers.DebertaConfig(), "disentangled attention"),
        (transformers.DebertaV2Config(), "disentangled attention"),
        (transformers.MPNetConfig(), "relative position bias"),
        (transformers.FNetConfig(), "Fourier"),
        (transformers.LongformerConfig(), "local and global attention"),
        (transformers.MobileBertConfig(), "trigram_input"),
        (transformers.ViTConfig(), "no encoder of this family with a head for text-classification"),
        (transformers.BertConfig(hidden_size=48, num_attention_heads=4), "heads of 12 "),
        (transformers.BertConfig(position_embedding_type="relative_key"), "position_embedding_type=relative_key"),
        (transformers.BertConfig(add_cross_attention=True), "cross-attention"),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_an_encoder_the_graph_cannot_represent_is_refused_by_name(config: Any, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        check_encoder_config(config, "text-classification")
    assert str(caught.value).startswith(config.model_type)


@pytest.mark.parametrize("task", sorted(HEADS))
def test_an_ordinary_encoder_passes_for_every_task(task: str) -> None:
    check_encoder_config(transformers.BertConfig(), task)


@pytest.mark.parametrize(
    ("declared", "task", "good"),
    [
        ("BertForSequenceClassification", "token-classification", False),
        ("BertForTokenClassification", "reranking", False),
        ("BertForMaskedLM", "question-answering", False),
        ("BertForTokenClassification", "token-classification", True),
        ("BertForPreTraining", "fill-mask", True),
        ("BertForMaskedLM", "feature-extraction", True),
        ("OurOwnTagger", "token-classification", True),
    ],
)
def test_a_head_for_another_task_is_told_by_its_class(declared: str, task: str, good: bool) -> None:
    config = transformers.BertConfig(architectures=[declared])
    if good:
        check_encoder_config(config, task)
        return
    with pytest.raises(UnsupportedModel, match=f"a {declared}; {task} takes"):
        check_encoder_config(config, task)


@pytest.mark.parametrize(
    ("pooling", "rows"), [("cls", Rows.FIRST), ("bos", Rows.FIRST), ("mean", Rows.MEAN), (None, Rows.FIRST), ("late", None)]
)
def test_the_rows_a_classifier_reads_are_those_its_configuration_names(pooling: str | None, rows: Rows | None) -> None:
    config = SimpleNamespace(model_type="tiny", classifier_pooling=pooling)
    if rows is not None:
        assert rows_read(HEADS["text-classification"], config, None) is rows
        return
    with pytest.raises(UnsupportedModel, match="classifier_pooling=late"):
        rows_read(HEADS["text-classification"], config, None)


def test_a_layer_that_is_causal_is_refused() -> None:
    trace, states = AttentionTrace("tiny", causal=False), torch.zeros(1, 2, 3, 16)
    trace(SimpleNamespace(is_causal=False), states, states, states, None)
    for module, features in ((SimpleNamespace(is_causal=True), {}), (SimpleNamespace(), {"is_causal": True})):
        with pytest.raises(UnsupportedModel, match="causal attention"):
            trace(module, states, states, states, None, **features)


def test_layers_that_share_a_module_are_counted_by_their_calls() -> None:
    trace, states, module = AttentionTrace("tiny", causal=False), torch.zeros(1, 2, 3, 16), SimpleNamespace()
    for _ in range(2):
        trace(module, states, states, states, None)
    assert [layer.index for layer in trace.layers] == [0, 1]
    check_layers(transformers.AlbertConfig(num_hidden_layers=2, num_attention_heads=4), trace.layers, causal=False)
    with pytest.raises(UnsupportedModel, match="the model has 4"):
        config = transformers.AlbertConfig(num_hidden_layers=2, inner_group_num=2, num_attention_heads=4)
        check_layers(config, trace.layers, causal=False)


@pytest.mark.parametrize(("window", "good"), [(9, True), (8, False), (-1, False)])
def test_a_window_must_arrive_as_its_reach_and_the_token_itself(window: int, good: bool) -> None:
    config = SimpleNamespace(model_type="tiny", num_hidden_layers=1, sliding_window=8)
    config.get_text_config = lambda decoder: config
    layers = [AttentionLayer(0, 2, 2, 16, 0.25, 0.0, window)]
    if good:
        check_layers(config, layers, causal=False)
        assert reach(layers[0]) == 8
        return
    with pytest.raises(UnsupportedModel, match="sliding_window"):
        check_layers(config, layers, causal=False)


@pytest.mark.parametrize(("softcap", "sinks", "reason"), [(30.0, None, "soft cap"), (0.0, torch.zeros(2), "attention sinks")])
def test_attention_that_only_decoders_have_is_refused(softcap: float, sinks: torch.Tensor | None, reason: str) -> None:
    states, layer = torch.zeros(3, 32), AttentionLayer(0, 2, 2, 16, 0.25, softcap, -1)
    with pytest.raises(UnsupportedModel, match=reason):
        PackedInputs(torch.zeros(2, dtype=torch.int32)).emit(layer, states, states, states, sinks)


# --- the proof's verdict ----------------------------------------------------------------------------------------------

GOOD = {
    "output_scale": 2.0,
    "max_abs_difference": 1e-3,
    "max_abs_difference_alone_batched": 1e-5,
    "greedy_disagreements": 0.0,
}
GOOD_INT8 = {"relative_error": 0.1, "max_abs_difference_alone_batched": 0.0}


@pytest.mark.parametrize("measure_name", [name for name in GOOD if name != "output_scale"])
@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_measure_out_of_tolerance_fails_the_proof_by_name(measure_name: str, value: float) -> None:
    judge_encoder(GOOD)
    with pytest.raises(ProofFailed, match=measure_name):
        judge_encoder(GOOD | {measure_name: value})


@pytest.mark.parametrize(
    ("measure_name", "value"),
    [("relative_error", 0.31), ("relative_error", np.nan), ("max_abs_difference_alone_batched", 1e-9)],
)
def test_int8_fails_the_proof_when_it_is_broken_or_depends_on_its_neighbours(measure_name: str, value: float) -> None:
    judge_int8(GOOD_INT8)
    with pytest.raises(ProofFailed, match=measure_name):
        judge_int8(GOOD_INT8 | {measure_name: value})


def test_likeness_is_that_of_the_outputs() -> None:
    wanted = [np.array([[3.0, 4.0], [0.0, 5.0]], np.float32), np.array([[1.0, 0.0]], np.float32)]
    assert likeness(wanted, wanted) == {
        "relative_error": 0.0,
        "mean_abs_difference": 0.0,
        "best_column_agreement": 1.0,
        "lowest_cosine": pytest.approx(1.0),
    }
    turned = [wanted[0][::-1], wanted[1]]
    found = likeness(turned, wanted)
    assert found["relative_error"] == pytest.approx(np.sqrt(20 / 51))
    assert found["best_column_agreement"] == 1.0 and found["lowest_cosine"] == pytest.approx(0.8)
    assert likeness([-rows for rows in wanted], wanted)["relative_error"] == pytest.approx(2.0)


def test_the_scale_of_outputs_is_theirs_also_when_each_row_is_one_number() -> None:
    outputs = [np.array([[value]], np.float32) for value in (-1.0, 1.0, -1.0, 1.0)]
    assert EncoderReference([TokenSequence((1,))] * 4, outputs).scale == pytest.approx(1.0)


# --- how many tokens to run at once -----------------------------------------------------------------------------------


def manifest_of(output: str = "token", max_length: int = 64) -> ModelManifest:
    return make_manifest(encoder=EncoderSpec(max_length=max_length, stride=0, output=output))


class TimedRunner:
    """Takes a fixed time for a run and a time for each token; remembers what it ran."""

    def __init__(self, seconds: float, seconds_per_token: float) -> None:
        self.now = 0.0
        self.sizes: list[int] = []
        self._seconds, self._seconds_per_token = seconds, seconds_per_token

    def run(self, sequences: Sequence[TokenSequence]) -> list[Any]:
        self.sizes.append(sum(len(sequence.token_ids) for sequence in sequences))
        self.now += self._seconds + self._seconds_per_token * self.sizes[-1]
        return []

    def clock(self) -> float:
        return self.now


def test_throughput_is_measured_up_to_runs_nobody_should_wait_for() -> None:
    runner = TimedRunner(0.01, 0.001)
    throughputs = measure(runner, manifest_of(), clock=runner.clock)
    assert list(throughputs) == [64, 128, 256, 512, 1024]  # 2048 would take more than two seconds
    assert throughputs[512] == pytest.approx(512 / 0.522)
    assert set(runner.sizes) == set(throughputs)


def test_marked_rows_are_asked_for_where_the_graph_gives_only_those() -> None:
    runner = TimedRunner(0.0, 1e-6)
    seen: list[TokenSequence] = []
    runner.run = lambda sequences: (seen.extend(sequences), setattr(runner, "now", runner.now + 1.0))  # type: ignore[assignment, func-returns-value]
    measure(runner, manifest_of(output="row"), clock=runner.clock)
    assert {sequence.rows for sequence in seen} == {(0,)}


def test_no_sentence_is_longer_than_the_model_takes() -> None:
    runner = TimedRunner(0.0, 1e-6)
    seen: list[TokenSequence] = []
    runner.run = lambda sequences: (seen.extend(sequences), setattr(runner, "now", runner.now + 1.0))  # type: ignore[assignment, func-returns-value]
    measure(runner, manifest_of(max_length=12), clock=runner.clock)
    assert max(len(sequence.token_ids) for sequence in seen) == 12


def test_the_smallest_run_that_is_nearly_the_fastest_is_chosen() -> None:
    assert best_size({64: 50.0, 128: 94.0, 256: 95.5, 512: 100.0, 1024: 99.0}) == 256
    assert best_size({64: 100.0, 128: 90.0}) == 64
