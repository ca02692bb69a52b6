"""Graphs, files and options that cannot be imported are refused in a sentence, and nothing is written."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from fastserve.errors import InvalidRequest, ModelNotFound, ToolError, UnsupportedModel
from tests.synthetic.padded_encoder import CONFIG, POSITIONS, VOCAB_SIZE, PaddedEncoder, import_encoder


def refuses(tmp_path, source, error, message, task="token-classification", **options):
    with pytest.raises(error, match=message):
        import_encoder(tmp_path, source, task, **options)
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (1, "seq")}, r"takes the input input_ids only as \[1, seq\]; its axes must be dynamic: \[batch, length\]"),
        ({"shape": ("batch", 16)}, r"takes the input input_ids only as \[batch, 16\]; its axes must be dynamic"),
        ({"integer": TensorProto.FLOAT}, r"takes the input input_ids, float \[batch, seq\]; allowed: input_ids, attention_mask"),
        ({"shape": ("batch",)}, r"takes the input input_ids, int64 \[batch\]; allowed: .* int64 or int32 \[batch, length\]"),
    ],
)
def test_a_graph_that_cannot_take_any_padded_batch_is_refused_by_its_input(tmp_path, change, message):
    graph = PaddedEncoder().save(tmp_path / "model", **CONFIG)
    model = onnx.load(graph)
    settings = {"integer": TensorProto.INT64, "shape": ("batch", "seq")} | change
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("input_ids", settings["integer"], settings["shape"]))
    onnx.save(model, graph)
    refuses(tmp_path, graph, UnsupportedModel, message)


def test_inputs_that_we_do_not_give_are_named(tmp_path):
    graph = PaddedEncoder().save(tmp_path / "model", **CONFIG)
    model = onnx.load(graph)
    model.graph.input.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["b", "l"]))
    onnx.save(model, graph)
    refuses(
        tmp_path, graph, UnsupportedModel, r"takes the input position_ids, int64 \[b, l\]; allowed: input_ids, attention_mask"
    )
    del model.graph.input[0]
    onnx.save(model, graph)
    refuses(tmp_path, graph, UnsupportedModel, "takes attention_mask, position_ids, but no input_ids")


def test_a_length_that_is_fixed_inside_the_graph_is_refused(tmp_path):
    graph = PaddedEncoder().save(tmp_path / "model", **CONFIG)
    model = onnx.load(graph)
    for initializer in model.graph.initializer:
        if initializer.name == "positions":
            initializer.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(initializer)[:6], "positions"))
    onnx.save(model, graph)
    refuses(tmp_path, graph, UnsupportedModel, "cannot run 3 sequences of 7 tokens; allowed: a graph that takes any number")


def test_a_graph_that_does_not_read_its_tokens_is_refused(tmp_path):
    graph = PaddedEncoder().save(tmp_path / "model", **CONFIG)
    model = onnx.load(graph)
    next(node for node in model.graph.node if node.output[0] == "word").input[1] = "attention_mask"
    onnx.save(model, graph)
    refuses(tmp_path, graph, UnsupportedModel, "the same output for different texts of one length")


def test_an_output_of_another_task_is_refused_with_its_shape(tmp_path):
    graph = PaddedEncoder().save(tmp_path / "model", **CONFIG)
    message = r"none of its outputs is one for text-classification \(logits float32 \[batch, length, 3\]\); allowed: \[batch, n\]"
    refuses(tmp_path, graph, UnsupportedModel, message, "text-classification")
    refuses(tmp_path, graph, UnsupportedModel, "none of its outputs is one for feature-extraction", "feature-extraction")


def test_labels_must_be_there_and_as_many_as_columns(tmp_path):
    graph = PaddedEncoder(num_columns=4).save(tmp_path / "model", **CONFIG)
    refuses(tmp_path, graph, UnsupportedModel, r"config.json names 3 labels, but the graph's output logits has 4 columns")
    (tmp_path / "model" / "config.json").unlink()
    refuses(tmp_path, graph, InvalidRequest, r"labels: got None, allowed: a file with a label on each line \(--labels FILE\)")


def test_masks_are_filled_only_by_a_graph_with_a_column_for_each_token(tmp_path):
    graph = PaddedEncoder(num_columns=16).save(tmp_path / "model", max_position_embeddings=POSITIONS)
    message = f"logits has 16 columns, but the vocabulary {VOCAB_SIZE} tokens; allowed: a column for each token"
    refuses(tmp_path, graph, UnsupportedModel, message, "fill-mask")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "it holds a list, allowed: a dict"),
        ('{"id2label": {"first": "O"}}', "invalid literal"),
        ('{"id2label": ["O"]}', "has no attribute"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused_by_its_name(tmp_path, text, message):
    graph = PaddedEncoder().save(tmp_path / "tagger", **CONFIG)
    (tmp_path / "tagger" / "config.json").write_text(text, encoding="utf-8")
    refuses(tmp_path, graph, ModelNotFound, rf"tagger: config.json cannot be read: .*{message}")


@pytest.mark.parametrize(
    ("changes", "options", "length"),
    [
        ({"max_position_embeddings": POSITIONS + 1}, {}, POSITIONS + 1),
        ({"max_position_embeddings": None}, {"max_length": 99}, 99),
    ],
)
def test_a_length_that_the_graph_has_no_positions_for_is_refused(tmp_path, changes, options, length):
    graph = PaddedEncoder().save(tmp_path / "model", **CONFIG | changes)
    refuses(tmp_path, graph, UnsupportedModel, rf"cannot run a sequence of {length} tokens.*--max-length", **options)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    graph = PaddedEncoder().save(tmp_path / "model", vocab_size=5000, **CONFIG)
    refuses(tmp_path, graph, UnsupportedModel, "graph and files that belong together")


def test_missing_and_ambiguous_files_are_named(tmp_path):
    refuses(tmp_path, tmp_path / "no.onnx", ModelNotFound, r"no.onnx: no such file")
    graph = PaddedEncoder().save(tmp_path / "model", external_data="weights.bin", **CONFIG)
    (tmp_path / "model" / "weights.bin").rename(tmp_path / "weights.bin")
    refuses(tmp_path, graph, ModelNotFound, r"weights.bin: the graph's weights are missing")
    (tmp_path / "model" / "model_quantized.onnx").write_bytes(b"")
    refuses(tmp_path, graph.parent, ModelNotFound, r"holds 2 ONNX files; name one of them: model.onnx, model_quantized.onnx")
    (tmp_path / "model" / "tokenizer.json").unlink()
    refuses(tmp_path, graph, ModelNotFound, r"model.onnx: no tokenizer.json beside it")


def test_damaged_files_are_refused_in_a_sentence(tmp_path):
    graph = PaddedEncoder().save(tmp_path / "model", **CONFIG)
    whole = graph.read_bytes()
    graph.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refuses(tmp_path, graph, ModelNotFound, r"only a pointer to the file: run `git lfs pull`")
    graph.write_bytes(b"no graph at all")
    refuses(tmp_path, graph, ModelNotFound, r"model.onnx: cannot be read as an ONNX file")
    graph.write_bytes(whole)
    (tmp_path / "model" / "tokenizer.json").write_text("{}", encoding="utf-8")
    refuses(tmp_path, graph, ModelNotFound, r"tokenizer.json: cannot be read")


def test_options_that_mean_nothing_for_a_graph_are_refused(tmp_path):
    graph = PaddedEncoder().save(tmp_path / "model", **CONFIG)
    refuses(tmp_path, graph, InvalidRequest, "task: got 'text-generation', allowed: for an ONNX file", "text-generation")
    refuses(tmp_path, graph, InvalidRequest, "dtype: got 'int8', allowed: none for an ONNX file", dtype="int8")
    refuses(tmp_path, tmp_path, InvalidRequest, "labels: .* only for an ONNX file", labels=tmp_path / "labels.txt")
    refuses(tmp_path, graph, InvalidRequest, "labels: .* not for fill-mask", "fill-mask", labels=tmp_path / "labels.txt")


def test_an_existing_version_is_left_alone(tmp_path):
    graph = PaddedEncoder().save(tmp_path / "model", **CONFIG)
    import_encoder(tmp_path, graph)
    with pytest.raises(ToolError, match="--force"):
        import_encoder(tmp_path, graph)
