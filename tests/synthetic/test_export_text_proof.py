"""The text side of an export is proven like the graph: any difference between source and saved tokenizer is found."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, normalizers, processors

from fastserve.errors import ProofFailed, UnsupportedModel
from fastserve.export.description import TOKENIZER_FILE, write_tokenizer
from fastserve.export.text_proof import prove_text
from fastserve.manifest import TokenizerSpec
from tests.synthetic.tiny_models import CHAT_TEMPLATE, tiny_tokenizer

MODEL = SimpleNamespace(generation_config=None, config=None)


def write(tokenizer: Any, directory: Path) -> TokenizerSpec:
    return write_tokenizer(tokenizer, MODEL, directory)


def spoil(directory: Path, **parts: Any) -> None:
    saved = Tokenizer.from_file(str(directory / TOKENIZER_FILE))
    for name, part in parts.items():
        setattr(saved, name, part)
    saved.save(str(directory / TOKENIZER_FILE))


def test_a_faithful_copy_passes(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    prove_text(tokenizer, write(tokenizer, tmp_path), tmp_path)


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": normalizers.Strip()},
        {"normalizer": normalizers.NFC()},
        {"post_processor": processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])},
    ],
    ids=["whitespace", "unicode", "begin"],
)
def test_a_tokenizer_that_reads_text_differently_fails_the_proof(parts: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    spec = write(tokenizer, tmp_path)
    spoil(tmp_path, **parts)
    with pytest.raises(ProofFailed, match="source's tokens"):
        prove_text(tokenizer, spec, tmp_path)


def test_a_tokenizer_that_writes_text_differently_fails_the_proof(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    spec = write(tokenizer, tmp_path)
    spoil(tmp_path, decoder=decoders.Fuse())
    with pytest.raises(ProofFailed, match="source's text"):
        prove_text(tokenizer, spec, tmp_path)


def test_a_tokenizer_that_splits_special_tokens_is_refused_by_name(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.split_special_tokens = True
    with pytest.raises(UnsupportedModel, match="split_special_tokens"):
        prove_text(tokenizer, write(tokenizer, tmp_path), tmp_path)


def test_a_template_that_renders_differently_fails_the_proof(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    spec = write(tokenizer, tmp_path)
    tokenizer.chat_template = CHAT_TEMPLATE + "!"
    with pytest.raises(ProofFailed, match="renders differently"):
        prove_text(tokenizer, spec, tmp_path)


def test_a_conversation_that_both_refuse_is_no_difference(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('not now') }}"
    prove_text(tokenizer, write(tokenizer, tmp_path), tmp_path)


def test_a_template_that_only_the_source_refuses_fails_the_proof(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    spec = write(tokenizer, tmp_path)
    tokenizer.chat_template = "{{ raise_exception('not now') }}"
    with pytest.raises(ProofFailed, match="not now"):
        prove_text(tokenizer, spec, tmp_path)


def test_a_template_that_only_the_server_refuses_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    spec = write(tokenizer, tmp_path)
    (tmp_path / str(spec.chat_template)).write_text("{{ raise_exception('not here') }}")
    with pytest.raises(UnsupportedModel, match="not here"):
        prove_text(tokenizer, spec, tmp_path)
