"""Import of ready-made ONNX encoders: what is written answers as the graph does."""

from __future__ import annotations

import json
import time

import numpy as np
import onnx
import pytest

from fastserve.config import EncoderConfig
from fastserve.engine.encoder_loader import load_encoder_engine, load_encoding_task
from fastserve.errors import InvalidRequest
from fastserve.manifest import ModelManifest
from fastserve.tasks.encoding_task import EncodingInput
from tests.synthetic.padded_encoder import CONFIG, LABELS, POSITIONS, PaddedEncoder, import_encoder

TEXTS = ["ada lives in london", "kofi", "Marie Curie was born in Poland and works in Paris"]


def answers(result, texts, **parameters):
    """(sequence, output) for each text, and the answer's tensors, as a server would find them."""
    directory = result.directory
    manifest, config = ModelManifest.load(directory), EncoderConfig()
    engine = load_encoder_engine(directory, manifest, config, time.monotonic, num_instances=1)
    task = load_encoding_task(directory, manifest, config)
    prepared = task.prepare(EncodingInput({"text_input": texts}, parameters=parameters), 0, 0.0)
    events = engine.submit(prepared.request)
    while engine.has_work:
        events += engine.step()
    (ending,) = events
    return list(zip(prepared.request.sequences, ending.outputs, strict=True)), prepared.answer(ending.outputs)


def test_a_folder_becomes_a_model_that_answers_as_the_graph_does(tmp_path):
    encoder = PaddedEncoder()
    folder = encoder.save(tmp_path / "tagger", **CONFIG).parent
    result = import_encoder(tmp_path, folder)
    assert result.directory == tmp_path / "repository" / "tagger" / "1"
    assert result.notes == ()
    manifest = ModelManifest.load(result.directory)
    assert manifest == result.manifest
    assert manifest.verify(result.directory) == []
    assert (manifest.encoder.batching, manifest.encoder.output, manifest.encoder.max_length) == ("padded", "token", POSITIONS)
    assert manifest.encoder.labels == tuple(LABELS.values())
    assert (manifest.model.model_type, manifest.model.dtype) == ("distilbert", "fp32")
    assert manifest.model.num_parameters == sum(array.size for name, array in encoder.weights().items() if name != "types") + 3
    run, tensors = answers(result, TEXTS)
    for sequence, output in run:
        np.testing.assert_allclose(output, encoder.expected(sequence), rtol=1e-4, atol=1e-4)
    assert len(json.loads(tensors["result"][2, 0])) > 0
    config = (result.model_directory / "config.pbtxt").read_text()
    assert 'key: "task" value: { string_value: "token-classification" }' in config
    assert "tokens/s" in config


def test_a_graph_that_rounds_by_one_scale_for_the_batch_runs_one_sequence_at_a_time(tmp_path):
    result = import_encoder(tmp_path, PaddedEncoder(one_scale=True).save(tmp_path / "quantised", **CONFIG))
    assert result.manifest.encoder.batching == "alone"
    assert result.manifest.proof["max_abs_difference_alone_batched"] > 1e-3
    (note,) = result.notes
    assert note.startswith(
        "one sequence a run: the graph rounds numbers by one scale for the whole batch (DynamicQuantizeLinear)"
    )
    assert "times as fast" in note
    assert "run one at a time" in (result.model_directory / "config.pbtxt").read_text()
    company, _ = answers(result, TEXTS)
    for text, (_, output) in zip(TEXTS, company, strict=True):
        ((_, alone),), _ = answers(result, [text])
        assert alone.tobytes() == output.tobytes()


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        (PaddedEncoder(heeds_mask=False), "change when it is padded, in spite of its attention_mask"),
        (PaddedEncoder(mask=False), "takes no attention_mask, so it would read padding as text"),
    ],
)
def test_a_graph_that_reads_padding_as_text_runs_one_sequence_at_a_time(tmp_path, encoder, reason):
    result = import_encoder(tmp_path, encoder.save(tmp_path / "model", **CONFIG))
    assert result.manifest.encoder.batching == "alone"
    assert reason in result.notes[0]
    for sequence, output in answers(result, TEXTS)[0]:
        np.testing.assert_allclose(output, encoder.expected(sequence), rtol=1e-4, atol=1e-4)


def test_labels_come_from_a_file_where_there_is_no_configuration(tmp_path):
    graph = PaddedEncoder().save(tmp_path / "model", file="tagger.onnx")
    (tmp_path / "labels.txt").write_text("$KEEP\n$DELETE\n$APPEND_,\n", encoding="utf-8")
    result = import_encoder(tmp_path, graph, labels=tmp_path / "labels.txt", max_length=40)
    assert result.manifest.model.name == "tagger"
    assert result.manifest.encoder.labels == ("$KEEP", "$DELETE", "$APPEND_,")
    assert (result.manifest.encoder.max_length, result.manifest.encoder.stride) == (40, 10)
    assert result.manifest.tokenizer.special_tokens["unk_token"] == "[UNK]"
    assert result.manifest.tokenizer.mask_token_id is not None


def test_a_file_of_labels_goes_before_the_configuration(tmp_path):
    graph = PaddedEncoder().save(tmp_path / "model", **CONFIG)
    (tmp_path / "labels.json").write_text('["a", "b", "c"]', encoding="utf-8")
    assert import_encoder(tmp_path, graph, labels=tmp_path / "labels.json").manifest.encoder.labels == ("a", "b", "c")


def test_weights_in_files_of_their_own_are_copied(tmp_path):
    graph = PaddedEncoder().save(tmp_path / "model", external_data="weights.bin", **CONFIG)
    result = import_encoder(tmp_path, graph)
    assert {"model.onnx", "weights.bin", "tokenizer.json"} == set(result.manifest.files)
    assert answers(result, TEXTS)


def test_tokenizer_and_configuration_may_lie_beside_a_folder_of_graphs(tmp_path):
    encoder = PaddedEncoder()
    encoder.save(tmp_path / "my-ner", **CONFIG)
    (tmp_path / "my-ner" / "onnx").mkdir()
    (tmp_path / "my-ner" / "model.onnx").rename(tmp_path / "my-ner" / "onnx" / "model_quantized.onnx")
    assert import_encoder(tmp_path, tmp_path / "my-ner" / "onnx" / "model_quantized.onnx").manifest.model.name == "my-ner"


def test_a_graph_may_be_a_link_as_in_the_cache_of_the_hub(tmp_path):
    graph = PaddedEncoder().save(tmp_path / "my-ner", **CONFIG)
    (tmp_path / "blobs").mkdir()
    graph.symlink_to(graph.rename(tmp_path / "blobs" / "0a1b2c"))
    assert import_encoder(tmp_path, graph).manifest.model.name == "my-ner"


def test_a_graph_that_takes_less_than_a_usual_sentence_is_measured_on_shorter_ones(tmp_path):
    graph = PaddedEncoder().save(tmp_path / "short", **CONFIG)
    model = onnx.load(graph)
    for initializer in model.graph.initializer:
        if initializer.name == "positions":
            initializer.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(initializer)[:16], "positions"))
    onnx.save(model, graph)
    assert import_encoder(tmp_path, graph, max_length=16).manifest.encoder.max_length == 16


def test_a_config_pbtxt_that_is_there_stays_and_nothing_is_measured_for_it(tmp_path):
    graph = PaddedEncoder().save(tmp_path / "model", **CONFIG)
    config = tmp_path / "repository" / "model" / "config.pbtxt"
    config.parent.mkdir(parents=True)
    config.write_text('backend: "fastserve" # mine', encoding="utf-8")
    result = import_encoder(tmp_path, graph)
    assert config.read_text(encoding="utf-8") == 'backend: "fastserve" # mine'
    assert "MEASURE" not in result.seconds and "PROVE" in result.seconds


def test_two_ends_of_an_answer_become_two_columns(tmp_path):
    encoder = PaddedEncoder("ends", num_columns=2)
    graph = encoder.save(tmp_path / "reader", max_position_embeddings=POSITIONS)
    result = import_encoder(tmp_path, graph, "question-answering")
    assert [output.name for output in result.manifest.graphs["encoder"].outputs] == ["start_logits", "end_logits"]
    directory, config = result.directory, EncoderConfig()
    engine = load_encoder_engine(directory, result.manifest, config, time.monotonic, num_instances=1)
    task = load_encoding_task(directory, result.manifest, config)
    prepared = task.prepare(EncodingInput({"question": ["who lives in london"], "context": [TEXTS[0]]}), 0, 0.0)
    events = engine.submit(prepared.request)
    while engine.has_work:
        events += engine.step()
    (output,) = events[0].outputs
    np.testing.assert_allclose(output, encoder.expected(prepared.request.sequences[0]), rtol=1e-4, atol=1e-4)
    assert prepared.answer(events[0].outputs)["answer"].shape == (1, 1)


def test_embeddings_of_tokens_are_pooled_as_the_user_says_and_those_of_texts_are_taken(tmp_path):
    for output, pooling, expected in (("token", "cls", "cls"), ("token", None, "mean"), ("sequence", None, None)):
        model = PaddedEncoder(output).model()
        for node in model.graph.node:
            node.output[:] = ["hidden_state" if name == "logits" else name for name in node.output]
        model.graph.output[0].name = "hidden_state"
        graph = PaddedEncoder(output).save(tmp_path / output, max_position_embeddings=POSITIONS)
        onnx.save(model, graph)
        result = import_encoder(tmp_path, graph, "feature-extraction", pooling=pooling, force=True)
        assert result.manifest.encoder.pooling == expected
        assert bool(result.notes) is (output == "token" and pooling is None)
        assert answers(result, TEXTS)[1]["embedding"].shape == (3, 3)
    with pytest.raises(InvalidRequest, match="the graph's output hidden_state is one embedding a text"):
        import_encoder(tmp_path, graph, "feature-extraction", pooling="cls", force=True)


def test_masks_are_filled_from_the_rows_of_the_masks(tmp_path):
    encoder = PaddedEncoder(num_columns=len(_vocabulary(tmp_path)))
    result = import_encoder(tmp_path, encoder.save(tmp_path / "filler", max_position_embeddings=POSITIONS), "fill-mask")
    ((sequence, output),), tensors = answers(result, ["ada lives in [MASK]"], top_k="1")
    best = int(encoder.expected(sequence)[list(sequence.rows)].argmax())
    assert output.shape == (1, encoder.num_columns)
    assert tensors["token"].tolist() == [[best]]


def _vocabulary(tmp_path):
    PaddedEncoder().save(tmp_path / "any")
    return json.loads((tmp_path / "any" / "tokenizer.json").read_text())["model"]["vocab"]
