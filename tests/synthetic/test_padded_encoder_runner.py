"""The runner of imported encoders on a hand-made graph: padding changes nothing, and "alone" never pads."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from onnx import TensorProto

from fastserve.config import EncoderConfig
from fastserve.core.encoding import EncodingRequest, TokenSequence
from fastserve.engine.encoder_loader import load_encoder_engine
from fastserve.errors import ManifestError, StepFailed
from fastserve.manifest import TensorSpec
from fastserve.worker.padded_encoder_runner import PaddedEncoderRunner
from tests.doubles import collect, make_manifest
from tests.synthetic.padded_encoder import POSITIONS, VOCAB_SIZE, PaddedEncoder, random_sequences

LENGTHS = [3, 40, 1, 64, 8, 8, 2]
KINDS = [
    PaddedEncoder("token"),
    PaddedEncoder("sequence"),
    PaddedEncoder("ends", num_columns=2),
    PaddedEncoder("token", token_types=True),
    PaddedEncoder("sequence", integer=TensorProto.INT32, token_types=True),
]


def close(left, right):
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4)


def run_graph(encoder, directory, sequences, **spec):
    return PaddedEncoderRunner(directory, encoder.save_version(directory, **spec)).run(sequences)


@pytest.mark.parametrize("encoder", KINDS)
@pytest.mark.parametrize("batching", ["padded", "alone"])
def test_every_sequence_gets_what_the_oracle_gives_it_without_padding(tmp_path, encoder, batching):
    sequences = random_sequences(LENGTHS, token_types=encoder.token_types)
    outputs = run_graph(encoder, tmp_path, sequences, batching=batching)
    assert len(outputs) == len(sequences)
    for sequence, output in zip(sequences, outputs, strict=True):
        assert output.dtype == np.float32
        close(output, encoder.expected(sequence))


def test_alone_a_sequence_gets_the_same_bits_in_any_company_where_padded_it_does_not(tmp_path):
    encoder, sequences = PaddedEncoder(one_scale=True), random_sequences(LENGTHS)
    for batching, same in (("alone", True), ("padded", False)):
        runner = PaddedEncoderRunner(tmp_path, encoder.save_version(tmp_path, batching=batching))
        apart = [runner.run([sequence])[0].tobytes() for sequence in sequences]
        assert ([output.tobytes() for output in runner.run(sequences)] == apart) is same


def test_only_the_wanted_rows_are_given_where_rows_are_wanted(tmp_path):
    sequences = [TokenSequence((1, 2, 3, 4), rows=(3, 1)), TokenSequence((5, 6)), TokenSequence((7,), rows=(0,))]
    encoder = PaddedEncoder()
    outputs = run_graph(encoder, tmp_path, sequences, output="row")
    assert [output.shape for output in outputs] == [(2, 3), (0, 3), (1, 3)]
    close(outputs[0], encoder.expected(sequences[0])[[3, 1]])
    close(outputs[2], encoder.expected(sequences[2]))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_rows_of_tokens_are_pooled_over_the_sequence_and_not_over_its_padding(tmp_path, pooling):
    encoder, sequences = PaddedEncoder(), random_sequences(LENGTHS)
    for sequence, output in zip(
        sequences, run_graph(encoder, tmp_path, sequences, output="sequence", pooling=pooling), strict=True
    ):
        rows = encoder.expected(sequence)
        close(output, rows.mean(axis=0) if pooling == "mean" else rows[0])
        assert output.base is None  # it may wait for the other windows of a document; the rows of a whole run need not


def test_a_result_is_not_written_to_by_later_runs(tmp_path):
    runner = PaddedEncoderRunner(tmp_path, PaddedEncoder().save_version(tmp_path))
    first, second = random_sequences(LENGTHS, seed=1), random_sequences(LENGTHS, seed=2)
    kept = runner.run(first)
    before = [output.tobytes() for output in kept]
    runner.run(second)
    assert [output.tobytes() for output in kept] == before


def test_a_sequence_longer_than_the_graph_has_positions_fails_the_run_and_not_the_next_one(tmp_path):
    runner = PaddedEncoderRunner(tmp_path, PaddedEncoder().save_version(tmp_path))
    with pytest.raises(StepFailed, match="the model run failed") as caught:
        runner.run(random_sequences([POSITIONS + 1]))
    assert not caught.value.retryable
    with pytest.raises(StepFailed, match=r"the model run failed: .*indices"):
        runner.run([TokenSequence((VOCAB_SIZE,))])
    assert len(runner.run(random_sequences([POSITIONS]))) == 1


def test_an_output_of_another_shape_than_the_manifest_says_is_an_error(tmp_path):
    manifest = PaddedEncoder("sequence").save_version(tmp_path)
    graph = dataclasses.replace(manifest.graphs["encoder"], outputs=(TensorSpec("logits", "float32", ("batch", "length", 3)),))
    runner = PaddedEncoderRunner(tmp_path, dataclasses.replace(manifest, graphs={"encoder": graph}))
    with pytest.raises(StepFailed, match=r"gave \[1, 3\] where \[1, 2, 'n'\] was expected"):
        runner.run([TokenSequence((1, 2))])


def test_a_packed_or_other_model_is_refused(tmp_path):
    with pytest.raises(ManifestError, match=r"encoder.batching: got packed, allowed: padded or alone"):
        PaddedEncoderRunner(tmp_path, PaddedEncoder().save_version(tmp_path, batching="packed"))
    with pytest.raises(ManifestError, match=r"encoder.batching: got None"):
        PaddedEncoderRunner(tmp_path, make_manifest())


def test_a_graph_with_inputs_we_do_not_know_is_refused(tmp_path):
    manifest = PaddedEncoder().save_version(tmp_path)
    graph = manifest.graphs["encoder"]
    for stranger in (TensorSpec("position_ids", "int64", ("b", "l")), TensorSpec("token_type_ids", "float32", ("b", "l"))):
        changed = dataclasses.replace(graph, inputs=(*graph.inputs, stranger))
        with pytest.raises(ManifestError, match=rf"takes {stranger.name}, which this version does not provide"):
            PaddedEncoderRunner(tmp_path, dataclasses.replace(manifest, graphs={"encoder": changed}))


@pytest.mark.parametrize(("batching", "steps"), [("padded", 5), ("alone", 6)])
def test_the_engine_runs_sequences_of_like_length_together_or_each_alone(tmp_path, batching, steps):
    encoder = PaddedEncoder()
    manifest = encoder.save_version(tmp_path, batching=batching)
    config = EncoderConfig(max_batched_tokens=100)
    engine = load_encoder_engine(tmp_path, manifest, config, time.monotonic, num_instances=1)
    assert engine.stats().steps == 0
    sequences = random_sequences([50, 3, 51, 7, 30, 17])  # padded, 3 runs with 7, and 50 without 51: 2 * 56 > 100
    events = []
    for request_id, sequence in enumerate(sequences):
        events += engine.submit(EncodingRequest(request_id, (sequence,)))
    while engine.has_work:
        events += engine.step()
    outcomes = collect(events)
    for request_id, sequence in enumerate(sequences):
        (ending,) = outcomes[request_id].endings
        close(ending.outputs[0], encoder.expected(sequence))
    assert engine.stats().steps == steps
