"""The encoder's runner and its loader on a hand-made graph: right for every kind of output, the same in any company."""

from __future__ import annotations

import dataclasses
import random
import time

import numpy as np
import pytest

from fastserve.config import EncoderConfig
from fastserve.core.encoding import EncodingRequest, TokenSequence
from fastserve.engine.encoder_loader import load_encoder_engine
from fastserve.errors import ManifestError, StepFailed
from fastserve.manifest import TensorSpec
from fastserve.worker.encoder_runner import EncoderRunner
from fastserve.worker.session import count_cores
from tests.doubles import collect, make_manifest
from tests.synthetic.hand_made_encoder import NUM_COLUMNS, VOCAB_SIZE, HandMadeEncoder, random_sequences

LENGTHS = [3, 70, 1, 130, 8, 8, 2]
OUTPUTS = ["sequence", "token", "row"]


def make_runner(directory, encoder, **options):
    return EncoderRunner(directory, encoder.save(directory), **options)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("position_offset", [0, 2])
def test_every_kind_of_output_matches_the_oracle(tmp_path, output, position_offset):
    encoder = HandMadeEncoder(output, position_offset)
    sequences = random_sequences(LENGTHS)
    outputs = make_runner(tmp_path, encoder).run(sequences)
    assert len(outputs) == len(sequences)
    for sequence, row in zip(sequences, outputs, strict=True):
        assert row.dtype == np.float32
        np.testing.assert_allclose(row, encoder.expected(sequence), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_sequence_gets_the_same_bits_alone_and_in_any_company(tmp_path, output):
    runner = make_runner(tmp_path, HandMadeEncoder(output))
    sequences = random_sequences(LENGTHS)
    alone = [runner.run([sequence])[0] for sequence in sequences]
    for seed in range(5):
        random.Random(seed).shuffle(order := list(range(len(sequences))))
        together = runner.run([sequences[index] for index in order])
        for index, row in zip(order, together, strict=True):
            assert row.tobytes() == alone[index].tobytes()


def test_shapes_are_those_of_the_contract_also_without_wanted_rows(tmp_path):
    sequences = [TokenSequence((1, 2, 3)), TokenSequence((4, 5), rows=(1, 0)), TokenSequence((6,))]
    runner = make_runner(tmp_path, HandMadeEncoder("row"))
    assert [row.shape for row in runner.run(sequences)] == [(0, NUM_COLUMNS), (2, NUM_COLUMNS), (0, NUM_COLUMNS)]
    assert [row.shape for row in runner.run(sequences[:1])] == [(0, NUM_COLUMNS)]
    runner = make_runner(tmp_path, HandMadeEncoder("sequence"))
    assert [row.shape for row in runner.run(sequences)] == [(NUM_COLUMNS,)] * 3
    runner = make_runner(tmp_path, HandMadeEncoder("token"))
    assert [row.shape for row in runner.run(sequences)] == [(3, NUM_COLUMNS), (2, NUM_COLUMNS), (1, NUM_COLUMNS)]


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_result_is_not_written_to_by_later_runs(tmp_path, output):
    runner = make_runner(tmp_path, HandMadeEncoder(output))
    first, second = random_sequences(LENGTHS, seed=1), random_sequences(LENGTHS, seed=2)
    kept = runner.run(first)
    before = [row.tobytes() for row in kept]
    for _ in range(3):
        runner.run(second)
    assert [row.tobytes() for row in kept] == before


def test_a_token_that_the_model_does_not_have_fails_the_run_and_not_the_next_one(tmp_path):
    runner = make_runner(tmp_path, HandMadeEncoder())
    good = random_sequences([5])
    before = runner.run(good)[0]
    with pytest.raises(StepFailed, match=r"the model run failed: .*indices") as caught:
        runner.run([TokenSequence((VOCAB_SIZE,))])
    assert not caught.value.retryable
    assert runner.run(good)[0].tobytes() == before.tobytes()


def test_token_types_must_be_as_many_as_tokens(tmp_path):
    with pytest.raises(ValueError, match="not as many token types as tokens"):
        make_runner(tmp_path, HandMadeEncoder()).run([TokenSequence((1, 2), (0,))])


def test_a_graph_that_gives_another_number_of_rows_than_its_manifest_says_is_an_error(tmp_path):
    manifest = HandMadeEncoder("token").save(tmp_path, output="sequence")
    with pytest.raises(StepFailed, match=r"gave 2 rows where 1 were expected \(sequence\)"):
        EncoderRunner(tmp_path, manifest).run([TokenSequence((1, 2))])


def test_a_model_that_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="task: got text-generation, allowed: the task of an encoder"):
        EncoderRunner(tmp_path, make_manifest())


def test_a_graph_with_inputs_we_do_not_know_is_refused(tmp_path):
    manifest = HandMadeEncoder().save(tmp_path)
    graph = manifest.graphs["encoder"]
    stranger = dataclasses.replace(graph, inputs=(*graph.inputs, TensorSpec("attention_mask", "int64", ("n",))))
    with pytest.raises(ManifestError, match=r"model.onnx: takes attention_mask, which this version does not provide"):
        EncoderRunner(tmp_path, dataclasses.replace(manifest, graphs={"encoder": stranger}))


def test_a_file_that_is_no_graph_is_refused(tmp_path):
    manifest = HandMadeEncoder().save(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ManifestError, match=r"model.onnx: ONNX Runtime cannot load it"):
        EncoderRunner(tmp_path, manifest)


# --- the loader -------------------------------------------------------------------------------------------------------


def load(directory, manifest, *, num_instances=1, **config):
    return load_encoder_engine(directory, manifest, EncoderConfig(**config), time.monotonic, num_instances=num_instances)


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_loaded_engine_is_warm_and_answers_as_the_oracle_does(tmp_path, output):
    encoder = HandMadeEncoder(output)
    engine = load(tmp_path, encoder.save(tmp_path), max_batched_tokens=100)
    assert engine.stats().steps == 0 and not engine.has_work
    sequences = random_sequences([50, 3, 60, 7] * 5)
    events = []
    for request_id in range(10):
        events += engine.submit(EncodingRequest(request_id, tuple(sequences[2 * request_id : 2 * request_id + 2])))
    while engine.has_work:
        events += engine.step()
    outcomes = collect(events)
    for request_id in range(10):
        (ending,) = outcomes[request_id].endings
        for sequence, row in zip(sequences[2 * request_id :], ending.outputs, strict=False):
            np.testing.assert_allclose(row, encoder.expected(sequence), rtol=1e-4, atol=1e-5)
    assert engine.stats().prompt_tokens == sum(len(sequence.token_ids) for sequence in sequences)


def test_the_warm_up_fills_the_budget_of_one_run(tmp_path, monkeypatch):
    runs = []
    run = EncoderRunner.run
    monkeypatch.setattr(EncoderRunner, "run", lambda self, sequences: runs.append(sequences) or run(self, sequences))
    manifest = HandMadeEncoder().save(tmp_path, max_length=40)
    for settings in ({"max_batched_tokens": 100}, {"max_batched_tokens": 30}, {"max_num_seqs": 2}):
        load(tmp_path, manifest, **settings)
    assert [[len(sequence.token_ids) for sequence in sequences] for sequences in runs] == [[40, 40], [30], [40, 40]]


def threads_of(engine):
    return engine._runner._session.get_session_options().intra_op_num_threads


def test_instances_divide_the_cores_and_each_gets_one_at_least(tmp_path):
    manifest = HandMadeEncoder().save(tmp_path)
    assert threads_of(load(tmp_path, manifest)) == count_cores()
    assert threads_of(load(tmp_path, manifest, num_instances=2)) == max(1, count_cores() // 2)
    assert threads_of(load(tmp_path, manifest, num_instances=1000)) == 1
    assert threads_of(load(tmp_path, manifest, num_instances=2, num_threads=3)) == 3


def test_a_decoder_and_an_unknown_way_of_batching_are_refused(tmp_path):
    with pytest.raises(ManifestError, match="allowed: the task of an encoder"):
        load(tmp_path, make_manifest())
    with pytest.raises(ManifestError, match=r"encoder\.batching: got 'ragged', allowed: packed, padded or alone"):
        load(tmp_path, HandMadeEncoder().save(tmp_path, batching="ragged"))


def test_a_model_that_cannot_even_run_is_refused_when_it_is_loaded(tmp_path):
    manifest = HandMadeEncoder().save(tmp_path, max_length=400)  # more than it has positions
    with pytest.raises(StepFailed, match="the model run failed"):
        load(tmp_path, manifest)
