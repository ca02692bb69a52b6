"""Hand-made tokenizers and manifests of encoders, for tests that give the model's rows by hand."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from fastserve.manifest import EncoderSpec, GraphSpec, ModelManifest, ModelSpec, TensorSpec, TokenizerSpec
from fastserve.text.tokenizer import Tokenizer
from tests.doubles import make_manifest

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
UNK, CLS, SEP, MASK = 1, 2, 3, 4
WORDS = (*"abcdefgh", *["the", "film", "is", "good", "bad", "this", "example", "not", "."])
MARKERS = ("[E1]", "[/E1]", "[E2]", "[/E2]")
VOCABULARY = {token: index for index, token in enumerate((*SPECIAL, *WORDS))}
IDS = VOCABULARY | {marker: len(VOCABULARY) + index for index, marker in enumerate(MARKERS)}


def word_level() -> tokenizers.Tokenizer:
    """A word of :data:`WORDS` or a full stop is a token, anything else is [UNK]; special tokens and types are BERT's."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([*SPECIAL, *MARKERS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return tokenizer


def byte_level() -> tokenizers.Tokenizer:
    """A byte is a token; special tokens as RoBERTa's, offsets without the spaces."""
    alphabet = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=True, add_prefix_space=False)
    return tokenizer


def loaded(tokenizer: tokenizers.Tokenizer, directory: Path) -> Tokenizer:
    """As the runtime has it: read from a file in ``directory``."""
    tokenizer.save(str(directory / "tokenizer.json"))
    return Tokenizer(directory, TokenizerSpec("tokenizer.json", ()))


def loaded_at_once(tokenizer: tokenizers.Tokenizer) -> Tokenizer:
    """As :func:`loaded`, for modules that share one; the file is gone afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        return loaded(tokenizer, Path(directory))


def encoder_manifest(
    task: str, *, max_length: int = 16, stride: int = 4, token_types: bool = True, vocab_size: int = 1000, **encoder: Any
) -> ModelManifest:
    """``encoder``: fields of EncoderSpec. No file of it is on disk."""
    names = ["input_ids", *(["token_type_ids"] if token_types else [])]
    graph = GraphSpec({"none": "model.onnx"}, tuple(TensorSpec(name, "int64", ("num_tokens",)) for name in names), ())
    return make_manifest(
        task=task,
        model=ModelSpec("tiny", "made in a test", "bert", "fp32", 1000, vocab_size, max_length),
        graphs={"encoder": graph},
        cache=None,
        encoder=EncoderSpec(**({"max_length": max_length, "stride": stride, "output": "sequence"} | encoder)),
    )
