"""Finds a ready-made ONNX graph, its tokenizer and its configuration."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from fastserve.errors import ModelNotFound
from fastserve.export.source import Source, load_tokenizer

_SUFFIX = ".onnx"
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.h5", "*.msgpack")
"""With one of these in it, a folder is a model to export, and an ONNX file in it something else."""
_GRAPH_FOLDER = "onnx"
"""Some keep their graphs in a folder of this name, and everything else beside it."""
_NAMES_THAT_SAY_NOTHING = ("model", "encoder")

_SPECIAL_TOKENS = {
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
"""What special tokens are called where no tokenizer_config.json says it."""


@dataclasses.dataclass(frozen=True, slots=True)
class OnnxSource:
    """``files``: where tokenizer and configuration are."""

    graph: Path
    files: Source

    @property
    def label(self) -> str:
        return self.files.label


def names_onnx(text: str) -> bool:
    """Whether ``text`` names an ONNX file, or a folder with ONNX files and no other weights."""
    path = Path(text).expanduser()
    if not path.is_dir():
        return path.suffix == _SUFFIX
    return any(path.glob(f"*{_SUFFIX}")) and not any(any(path.glob(pattern)) for pattern in _WEIGHTS)


def find_onnx(text: str) -> OnnxSource:
    """Raises ModelNotFound when the graph or its tokenizer is missing, or when several graphs could be meant."""
    path = Path(text).expanduser()
    graph = _only_graph(path) if path.is_dir() else path
    if not graph.is_file():
        raise ModelNotFound(f"{path}: no such file")
    folder = graph.parent.resolve()  # not the graph itself, which may be a link, as in the hub's cache
    candidates = [folder, *([folder.parent] if folder.name == _GRAPH_FOLDER else [])]
    found = next((folder for folder in candidates if (folder / "tokenizer.json").is_file()), None)
    if found is None:
        raise ModelNotFound(
            f"{graph}: no tokenizer.json beside it; save the model's tokenizer there (AutoTokenizer.from_pretrained(...)"
            ".save_pretrained(FOLDER))"
        )
    says_nothing = graph.stem.startswith(_NAMES_THAT_SAY_NOTHING)
    return OnnxSource(graph, Source(str(found), found.name if path.is_dir() or says_nothing else graph.stem))


def _only_graph(folder: Path) -> Path:
    graphs = sorted(folder.glob(f"*{_SUFFIX}"))
    if len(graphs) != 1:
        raise ModelNotFound(
            f"{folder} holds {len(graphs)} ONNX files; name one of them: {', '.join(file.name for file in graphs)}"
        )
    return graphs[0]


def load_onnx_tokenizer(source: Source) -> Any:
    """As transformers loads it, also where there is nothing but a tokenizer.json. Raises ModelNotFound or UnsupportedModel."""
    folder = Path(source.location)
    if (folder / "tokenizer_config.json").is_file():
        return load_tokenizer(source)
    file = folder / "tokenizer.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        make: Any = PreTrainedTokenizerFast
        tokenizer = make(tokenizer_file=str(file))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelNotFound(f"{file}: cannot be read ({error})") from error
    vocabulary = tokenizer.get_vocab()
    for name, texts in _SPECIAL_TOKENS.items():
        if text := next((text for text in texts if text in vocabulary), None):
            setattr(tokenizer, name, text)
    if truncation := settings.get("truncation"):
        tokenizer.model_max_length = truncation["max_length"]
    return tokenizer
