"""Tiny random encoders of every family and task, saved as Hugging Face folders, for tests that export or serve one.

``save_encoder("token-classification", "bert", directory)`` is all a test needs. Every tokenizer is a real one of its family's
kind (WordPiece, byte-level BPE, unigram pieces), knows :data:`WORDS` whole, spells other words out, and gives offsets.
"""

from __future__ import annotations

import json
import string
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.synthetic.tiny_models import fill_randomly

MAX_LENGTH = 128
"""Longest sequence of every tiny encoder, special tokens included."""

_WORDS = (
    "the a an of in on at to and is was were by for with from not very who what where when how this example "
    "good bad film food river city capital book born lives works visited wrote said likes company married "
    "ada london paris berlin marie curie alan turing john smith anna kofi france england poland ghana google acme"
)
WORDS = tuple(_WORDS.split())
"""Words that are one token each, lower case; the cased tokenizers also know them with a capital."""

LABELS: dict[str, tuple[str, ...]] = {
    "text-classification": ("negative", "neutral", "positive"),
    "token-classification": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
    "relation-extraction": ("no_relation", "born_in", "works_for"),
    "zero-shot-classification": ("contradiction", "neutral", "entailment"),
    "reranking": ("relevance",),
}
"""The labels :func:`save_encoder` gives the head of each classifying task."""

MARKERS = ("[E1]", "[/E1]", "[E2]", "[/E2]")
"""Added to the tokenizer of relation-extraction models."""

AUTO_CLASSES: dict[str, Any] = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "relation-extraction": transformers.AutoModelForSequenceClassification,
    "zero-shot-classification": transformers.AutoModelForSequenceClassification,
    "reranking": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "question-answering": transformers.AutoModelForQuestionAnswering,
    "fill-mask": transformers.AutoModelForMaskedLM,
    "feature-extraction": transformers.AutoModel,
}

_BERT_SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ROBERTA_SPECIALS = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
_SPACE = "▁"


def tiny_encoder_tokenizer(family: str, *, markers: bool = False) -> PreTrainedTokenizerFast:
    """``markers``: with :data:`MARKERS` as special tokens."""
    kind, specials = _TOKENIZERS[family]
    tokenizer: Tokenizer = kind(specials, family)
    ids = {name: tokenizer.token_to_id(token) for name, token in specials.items()}
    cls, sep = specials["cls"], specials["sep"]
    between = f"{sep} {sep}" if cls == "<s>" else sep
    second = 1 if _uses_token_types(family) else 0
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {between} $B:{second} {sep}:{second}",
        special_tokens=[(cls, ids["cls"]), (sep, ids["sep"])],
    )
    inputs = ["input_ids", *(["token_type_ids"] if _uses_token_types(family) else []), "attention_mask"]
    mask = AddedToken(specials["mask"], lstrip=cls == "<s>", special=True)
    named = {f"{name}_token": mask if name == "mask" else token for name, token in specials.items()}
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=inputs, model_max_length=MAX_LENGTH, bos_token=cls, eos_token=sep, **named
    )
    if markers:
        result.add_special_tokens({"additional_special_tokens": list(MARKERS)})
    return result


def _uses_token_types(family: str) -> bool:
    return family in ("bert", "electra", "albert")


def _word_piece(specials: dict[str, str], family: str) -> Tokenizer:
    lowercase = family != "distilbert"
    letters = [*string.ascii_lowercase, *([] if lowercase else string.ascii_uppercase), *string.digits]
    pieces = [*specials.values(), *string.punctuation, *letters, *(f"##{letter}" for letter in letters), "##s", "##ed", "##ing"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, *_words(lowercase)]))}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=specials["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _byte_pairs(specials: dict[str, str], family: str) -> Tokenizer:
    pieces, merges = [*specials.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())], []
    for word in (f"Ġ{word}" for word in _words(lowercase=False)):
        for end in range(1, len(word)):
            merges.append((word[:end], word[end]))
            pieces.append(word[: end + 1])
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(dict.fromkeys(merges))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _unigram(specials: dict[str, str], family: str) -> Tokenizer:
    letters = [_SPACE, *string.ascii_letters, *string.digits, *string.punctuation]
    words = [f"{_SPACE}{word}" for word in _words(lowercase=False)]
    scores = dict.fromkeys(specials.values(), 0.0) | dict.fromkeys(letters, -9.0) | dict.fromkeys(words, -4.0)
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=list(scores).index(specials["unk"])))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _words(lowercase: bool) -> list[str]:
    return list(WORDS) if lowercase else [*WORDS, *(word.capitalize() for word in WORDS)]


_TOKENIZERS: dict[str, tuple[Callable[[dict[str, str], str], Tokenizer], dict[str, str]]] = {
    "bert": (_word_piece, _BERT_SPECIALS),
    "distilbert": (_word_piece, _BERT_SPECIALS),
    "electra": (_word_piece, _BERT_SPECIALS),
    "albert": (_unigram, _BERT_SPECIALS),
    "modernbert": (_byte_pairs, _BERT_SPECIALS),
    "roberta": (_byte_pairs, _ROBERTA_SPECIALS),
    "xlm-roberta": (_unigram, _ROBERTA_SPECIALS),
    "camembert": (_unigram, _ROBERTA_SPECIALS),
}


def _settings(family: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Two layers of 2 heads of 16, the special ids of the family's tokenizer, no dropout to forget."""
    tokenizer = tiny_encoder_tokenizer(family)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": MAX_LENGTH,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return settings | changes


def bert_config(**changes: Any) -> Any:
    """Two token types, a pooler."""
    return transformers.BertConfig(**_settings("bert", changes))


def distilbert_config(**changes: Any) -> Any:
    """No token types, no pooler, settings by other names."""
    return transformers.DistilBertConfig(**_settings("distilbert", {"hidden_dim": 48} | changes))


def electra_config(**changes: Any) -> Any:
    """Embeddings smaller than the hidden size, projected."""
    return transformers.ElectraConfig(**_settings("electra", {"embedding_size": 16} | changes))


def albert_config(**changes: Any) -> Any:
    """One layer's weights used by both layers, the tanh approximation of GELU, embeddings of their own size."""
    return transformers.AlbertConfig(**_settings("albert", {"embedding_size": 16} | changes))


def modernbert_config(**changes: Any) -> Any:
    """Rotary positions; the second layer attends to 8 tokens to each side."""
    special = {"cls_token_id": 2, "sep_token_id": 3, "local_attention": 16, "global_attn_every_n_layers": 2}
    return transformers.ModernBertConfig(**_settings("modernbert", special | changes))


def roberta_config(**changes: Any) -> Any:
    """Positions from 2."""
    return transformers.RobertaConfig(**_shifted("roberta", changes))


def xlm_roberta_config(**changes: Any) -> Any:
    """Positions from 2, unigram pieces."""
    return transformers.XLMRobertaConfig(**_shifted("xlm-roberta", changes))


def camembert_config(**changes: Any) -> Any:
    """A RoBERTa by another name."""
    return transformers.CamembertConfig(**_shifted("camembert", changes))


def _shifted(family: str, changes: dict[str, Any]) -> dict[str, Any]:
    return _settings(family, {"max_position_embeddings": MAX_LENGTH + 2, "type_vocab_size": 1} | changes)


TINY_ENCODERS: dict[str, Callable[..., Any]] = {
    "bert": bert_config,
    "distilbert": distilbert_config,
    "electra": electra_config,
    "albert": albert_config,
    "modernbert": modernbert_config,
    "roberta": roberta_config,
    "xlm-roberta": xlm_roberta_config,
    "camembert": camembert_config,
}
"""By family: a function from changed settings to a transformers configuration."""


def save_encoder(task: str, family: str, directory: Path, *, seed: int = 0, **config_changes: Any) -> Path:
    """Save a random encoder with the head of ``task`` and its family's tokenizer; returns ``directory``.

    ``config_changes``: settings of the configuration, e.g. ``num_labels=1`` or ``id2label={...}`` instead of :data:`LABELS`.
    """
    tokenizer = tiny_encoder_tokenizer(family, markers=task == "relation-extraction")
    labels = dict(enumerate(LABELS.get(task, ())))
    if labels and not {"num_labels", "id2label"} & set(config_changes):
        config_changes |= {"id2label": labels, "label2id": {label: index for index, label in labels.items()}}
    config = TINY_ENCODERS[family](**{"vocab_size": len(tokenizer)} | config_changes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(transformers|torch|safetensors)\..*")
        model = AUTO_CLASSES[task].from_config(config, attn_implementation="eager").eval()
        fill_randomly(model, seed)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return directory


def add_sentence_transformers_files(directory: Path, *, pooling: str = "mean", normalize: bool = True) -> Path:
    """Make a saved feature-extraction model a sentence-transformers model: pooling "mean" or "cls"; returns ``directory``."""
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(parts)
    ]
    (directory / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | modes), encoding="utf-8")
    return directory
