"""Tiny random language models with a tokenizer, saved as Hugging Face folders, for tests that export or serve one.

The weights are large (standard deviation :data:`WEIGHT_STD`): with the usual 0.02 every attention weight is nearly uniform
and a dropped feature (a window, a scale, a bias) would not show in the logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

WEIGHT_STD = 0.15

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MERGES = ("t h", "th e", "i n", "e r", "a n", "o n", "r e", "e n", "o u", "i t")
VOCAB_SIZE = len(SPECIAL_TOKENS) + len(pre_tokenizers.ByteLevel.alphabet()) + len(_MERGES)
CHAT_TEMPLATE = (
    "{% for tool in tools or [] %}<|im_start|>tool\n{{ tool | tojson }}<|im_end|>\n{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text survives encode and decode. Ends with <|im_end|>; has a chat template."""
    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    merges = [tuple(merge.split()) for merge in _MERGES]
    for piece in [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]:
        vocabulary[piece] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def llama_config(**changes: Any) -> LlamaConfig:
    """Two layers, 4 query heads on 2 key/value heads of 16, tied embeddings, 256 positions."""
    return LlamaConfig(**decoder_settings(tie_word_embeddings=True, **changes))


def qwen2_config(**changes: Any) -> Qwen2Config:
    """Biases on query, key and value."""
    return Qwen2Config(**decoder_settings(**changes))


def qwen3_config(**changes: Any) -> Qwen3Config:
    """Norms on query and key; head size independent of the hidden size."""
    return Qwen3Config(**decoder_settings(**{"head_dim": 32} | changes))


def mistral_config(**changes: Any) -> MistralConfig:
    """A sliding window shorter than the prompts of the proof."""
    return MistralConfig(**decoder_settings(**{"sliding_window": 12} | changes))


def gpt2_config(**changes: Any) -> GPT2Config:
    """Learned positions, Conv1D projections, one scale per layer."""
    settings = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": VOCAB_SIZE}
    return GPT2Config(**settings | _special_ids() | changes)


TINY_CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": llama_config,
    "gpt2": gpt2_config,
    "qwen2": qwen2_config,
    "qwen3": qwen3_config,
    "mistral": mistral_config,
}


def random_model(config: Any, seed: int = 0) -> Any:
    """A causal language model of ``config`` with every parameter random: weights, biases and norms too."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    fill_randomly(model, seed)
    return model


def fill_randomly(model: Any, seed: int = 0) -> None:
    """Give every parameter random values: weights, biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, WEIGHT_STD, generator=generator)
            if "norm" in name.lower() or "ln_" in name:
                parameter.add_(1.0 if name.endswith("weight") else 0.0)


def save_model(config: Any, directory: Path, seed: int = 0, **generation: Any) -> Path:
    """Save a random model of ``config`` with :func:`tiny_tokenizer` as a Hugging Face folder; returns ``directory``.

    ``generation``: values for generation_config.json beside eos_token_id.
    """
    model = random_model(config, seed)
    tokenizer = tiny_tokenizer()
    eos = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    model.generation_config = GenerationConfig(eos_token_id=eos, bos_token_id=config.get_text_config().bos_token_id, **generation)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(transformers|torch|safetensors)\..*")
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return directory


def _special_ids() -> dict[str, int]:
    return {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def decoder_settings(**changes: Any) -> dict[str, Any]:
    """The tiny Llama's sizes and special ids, by the names most configurations give them."""
    settings = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "vocab_size": VOCAB_SIZE,
    }
    return settings | _special_ids() | changes
