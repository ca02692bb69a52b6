"""manifest.json: what export wrote is what the runtime reads, and every kind of damage is named."""

from __future__ import annotations

import hashlib
import json

import pytest

from fastserve.errors import ManifestError
from fastserve.manifest import (
    CUDA_LAYOUT,
    KEY_LAYOUT,
    MANIFEST_FILE,
    MANIFEST_VERSION,
    VALUE_LAYOUT,
    CacheSpec,
    EncoderSpec,
    FileEntry,
    GraphSpec,
    LayerCacheSpec,
    ModelManifest,
    TensorSpec,
    TokenizerSpec,
    cache_shape,
    hash_file,
)
from tests.doubles import make_manifest


def full_manifest(**changes):
    """Every field filled, with every kind of nesting."""
    return make_manifest(
        graphs={
            "decoder": GraphSpec(
                {"fp32": "decoder.onnx", "fp16": "decoder_fp16.onnx"},
                (TensorSpec("input_ids", "int64", ("num_tokens",)), TensorSpec("key_cache.0", "cache", ("num_blocks", 2, 8, 16))),
                (TensorSpec("logits", "float32", ("num_rows", 258)),),
            )
        },
        tokenizer=TokenizerSpec("tokenizer.json", (1, 2), 0, None, "chat_template.jinja", {"bos_token": "<s>", "eos_token": "é"}),
        cache=CacheSpec((LayerCacheSpec(2, 8), LayerCacheSpec(1, 4, window=512))),
        position_offset=2,
        generation={"temperature": 0.7, "top_k": 50},
        files={"decoder.onnx": FileEntry("ab" * 32, 12)},
        proof={"max_abs_logit_difference": 1.5e-5},
        encoder=EncoderSpec(512, 128, "token", labels=("O", "B-PER"), markers=("[E1]",), pooling="mean", normalize=True),
        **changes,
    )


def damaged(change):
    """The JSON of a manifest after ``change(data)``."""
    data = json.loads(full_manifest().to_json())
    change(data)
    return json.dumps(data)


def refusal(text):
    with pytest.raises(ManifestError) as caught:
        ModelManifest.from_json(text)
    return str(caught.value)


def write_model(directory, **contents):
    """A version folder with the given files and a true manifest."""
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    manifest = make_manifest(files={name: hash_file(directory / name) for name in contents})
    (directory / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def test_a_manifest_survives_the_round_trip_through_json():
    manifest = full_manifest()
    assert ModelManifest.from_json(manifest.to_json()) == manifest


def test_a_manifest_of_an_encoder_without_cache_and_tokenizer_survives_too():
    manifest = make_manifest(cache=None, tokenizer=None)
    assert ModelManifest.from_json(manifest.to_json()) == manifest


def test_lists_become_tuples_so_that_the_manifest_is_really_frozen():
    read = ModelManifest.from_json(full_manifest().to_json())
    assert read.graphs["decoder"].inputs[1].shape == ("num_blocks", 2, 8, 16)
    assert read.tokenizer.eos_token_ids == (1, 2)


def test_keys_with_a_default_may_be_absent():
    def change(data):
        for key in ("key_layout", "value_layout"):
            del data["cache"][key]
        for layer in data["cache"]["layers"]:
            del layer["window"]
        for key in ("bos_token_id", "pad_token_id", "chat_template", "special_tokens"):
            del data["tokenizer"][key]
        del data["encoder"]

    read = ModelManifest.from_json(damaged(change))
    assert (read.cache.key_layout, read.cache.value_layout) == (KEY_LAYOUT, VALUE_LAYOUT)
    assert [layer.window for layer in read.cache.layers] == [None, None]
    assert (read.tokenizer.bos_token_id, read.tokenizer.special_tokens) == (None, {})


def test_a_whole_number_may_stand_for_a_real_one():
    assert ModelManifest.from_json(damaged(lambda data: data["generation"].update(top_p=1))).generation["top_p"] == 1


@pytest.mark.parametrize(
    "key", [key for key in json.loads(full_manifest().to_json()) if key not in ("manifest_version", "encoder")]
)
def test_every_missing_key_is_named(key):
    assert f".{key}: missing" in refusal(damaged(lambda data: data.pop(key)))


@pytest.mark.parametrize("key", ["vocab_size", "max_model_len", "dtype"])
def test_a_missing_key_inside_an_object_is_named_with_its_path(key):
    assert f".model.{key}: missing" in refusal(damaged(lambda data: data["model"].pop(key)))


def test_an_unknown_key_is_named():
    assert ".surprise: unknown key" in refusal(damaged(lambda data: data.update(surprise=1)))
    assert ".model.surprise: unknown key" in refusal(damaged(lambda data: data["model"].update(surprise=1)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model", "vocab_size"), "many"),
        (("model", "vocab_size"), 1.5),
        (("model", "vocab_size"), True),
        (("model", "name"), None),
        (("model",), ["tiny"]),
        (("task",), 3),
        (("position_offset",), None),
        (("position_offset",), 2.0),
        (("generation", "temperature"), "hot"),
        (("generation", "temperature"), True),
        (("generation",), []),
        (("files", "decoder.onnx"), "ab"),
        (("files", "decoder.onnx", "bytes"), None),
        (("tokenizer", "eos_token_ids"), 2),
        (("tokenizer", "eos_token_ids", 1), "two"),
        (("tokenizer", "bos_token_id"), "0"),
        (("tokenizer",), "tokenizer.json"),
        (("cache", "layers"), {}),
        (("cache", "layers", 1, "head_size"), "4"),
        (("graphs", "decoder", "inputs", 1, "shape", 0), None),
        (("graphs", "decoder", "files", "fp32"), 1),
        (("fastserve_version",), 1),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else repr(value),
)
def test_a_value_of_the_wrong_type_is_named_with_its_path(path, value):
    def change(data):
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    message = refusal(damaged(change))
    shown = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    assert f"{shown}: got " in message
    assert "allowed: " in message


@pytest.mark.parametrize("version", [MANIFEST_VERSION + 1, 0, "1", None])
def test_a_manifest_of_another_version_says_to_export_again(version):
    message = refusal(damaged(lambda data: data.update(manifest_version=version)))
    assert message.startswith(f"manifest_version: got {version!r}, allowed: {MANIFEST_VERSION}")
    assert "export the model again" in message


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '"manifest"'])
def test_json_that_is_no_manifest_is_refused(text):
    assert "manifest" in refusal(text)


@pytest.mark.parametrize("text", [full_manifest().to_json()[:200], "[" * 100_000, "\x00"], ids=["truncated", "nested", "binary"])
def test_damaged_json_is_named_as_such(text):
    assert refusal(text).startswith(f"{MANIFEST_FILE}: not JSON")


def test_a_complete_version_folder_is_loaded(tmp_path):
    manifest = write_model(tmp_path, weights=b"abc", graph=b"")
    assert ModelManifest.load(tmp_path) == manifest
    assert manifest.verify(tmp_path) == []


def test_a_folder_without_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(ManifestError, match=r"manifest.json: cannot be read .*fastserve export"):
        ModelManifest.load(tmp_path)


def test_a_manifest_that_is_not_text_is_a_damaged_copy(tmp_path):
    (tmp_path / MANIFEST_FILE).write_bytes(b'{"task": "\xff"}')
    with pytest.raises(ManifestError, match=r"manifest.json: not UTF-8 text"):
        ModelManifest.load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    write_model(tmp_path, weights=b"abc")
    (tmp_path / "weights").unlink()
    with pytest.raises(ManifestError, match=r"weights: listed in manifest.json but missing"):
        ModelManifest.load(tmp_path)


def test_a_truncated_file_is_named_with_both_sizes(tmp_path):
    write_model(tmp_path, weights=b"abcdef")
    (tmp_path / "weights").write_bytes(b"abc")
    with pytest.raises(ManifestError, match=r"weights: 3 bytes, the manifest says 6; the copy is incomplete"):
        ModelManifest.load(tmp_path)


def test_a_changed_file_of_the_right_size_is_found_by_its_hash(tmp_path):
    manifest = write_model(tmp_path, weights=b"abc", graph=b"xyz")
    (tmp_path / "weights").write_bytes(b"abd")
    assert ModelManifest.load(tmp_path) == manifest  # sizes alone cannot tell
    assert manifest.verify(tmp_path) == ["weights"]


def test_the_hash_of_a_file_is_its_sha256_and_size(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert hash_file(tmp_path / "file") == FileEntry(hashlib.sha256(content).hexdigest(), len(content))


def test_a_device_this_version_does_not_know_is_refused():
    assert "model.device: got 'tpu', allowed: cpu or cuda" in refusal(damaged(lambda data: data["model"].update(device="tpu")))


def test_the_caches_of_a_model_for_cuda_have_the_layout_of_onnx_runtimes_operator():
    def change(data):
        data["model"]["device"] = "cuda"
        data["cache"] |= {"key_layout": CUDA_LAYOUT, "value_layout": CUDA_LAYOUT}

    read = ModelManifest.from_json(damaged(change))
    assert cache_shape(read.cache.key_layout, read.cache.layers[0], 5, 16) == (5, 16, 2, 8)
    assert "is not this version's kernel's for cuda" in refusal(damaged(lambda data: data["model"].update(device="cuda")))
