"""``manifest.json``: the only coupling between export (which writes it) and the runtime (which reads it).

It lies beside the graphs in ``model_repository/<model>/<version>/`` and says what the graphs take, how attention caches
are laid out, what text goes in and out, and the hash of every file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from fastserve.errors import ManifestError

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1

KEY_LAYOUT = "block,head,dim,token"
"""key_cache.{i}: [num_blocks, kv_num_heads, head_size, block_size]; one vector load covers the same dim of 16 tokens."""
VALUE_LAYOUT = "block,head,token,dim"
"""value_cache.{i}: [num_blocks, kv_num_heads, block_size, head_size]."""
CUDA_LAYOUT = "block,token,head,dim"
"""Both caches of ONNX Runtime's own operator: [num_blocks, block_size, kv_num_heads, head_size]."""

CPU, CUDA = "cpu", "cuda"
LAYOUTS = {CPU: (KEY_LAYOUT, VALUE_LAYOUT), CUDA: (CUDA_LAYOUT, CUDA_LAYOUT)}
"""Device -> layouts of the key and the value cache, as its attention operator has them."""


@dataclasses.dataclass(frozen=True, slots=True)
class TensorSpec:
    """A graph input or output. ``shape``: an int is fixed, a string names a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class GraphSpec:
    """One ONNX graph. ``files`` maps a KV element type ("fp32", "fp16", "int8"; "none" without a cache) to its .onnx file;
    the variants share one external weight file and differ only in the type and shape of their cache inputs.
    ``reordered_bytes``: weights that ONNX Runtime brings into an order of its own when it loads the graph, copying them; None:
    they were not counted, in an import of an ONNX file or by an older export."""

    files: dict[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    reordered_bytes: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class LayerCacheSpec:
    """Shape of one attention layer's cache, heads and elements. ``window``: positions that a token attends to at most, its own
    among them; None: all, or an export of before it was written down."""

    kv_num_heads: int
    head_size: int
    window: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class CacheSpec:
    """The KV cache of a decoder, layer by layer, and its block-inner layouts."""

    layers: tuple[LayerCacheSpec, ...]
    key_layout: str = KEY_LAYOUT
    value_layout: str = VALUE_LAYOUT


def cache_shape(layout: str, layer: LayerCacheSpec, num_blocks: int, block_size: int) -> tuple[int, ...]:
    """Shape of one layer's key or value cache."""
    sizes = {"block": num_blocks, "token": block_size, "head": layer.kv_num_heads, "dim": layer.head_size}
    return tuple(sizes[axis] for axis in layout.split(","))


@dataclasses.dataclass(frozen=True, slots=True)
class ModelSpec:
    """What was exported, from where. ``max_model_len``: longest context in tokens the graph is valid for. ``adapter``: the
    folder's name, if one was merged into the weights. ``device``: what its graphs run on, a key of :data:`LAYOUTS`.
    ``fp32_modules``: of an int8 or int4 model, the modules of the source whose products stayed fp32; ``int8_modules``: of an int4
    model, those whose products are int8."""

    name: str
    source: str
    model_type: str
    dtype: str
    num_parameters: int
    vocab_size: int
    max_model_len: int
    adapter: str | None = None
    device: str = CPU
    fp32_modules: tuple[str, ...] = ()
    int8_modules: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """Files and special ids. ``eos_token_ids``: every id that ends a generation."""

    file: str
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    chat_template: str | None = None
    special_tokens: dict[str, str] = dataclasses.field(default_factory=dict)
    """bos_token, eos_token, ... as text, for chat templates."""
    mask_token_id: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class EncoderSpec:
    """How an encoder's graph is run and what its answer means. Lengths in tokens, special tokens included."""

    max_length: int
    """Longest sequence of one run; longer documents are cut into windows."""
    stride: int
    """Tokens of the text that two neighbouring windows share."""
    output: str
    """What a row of the graph's only output is about: "sequence" [num_seqs, n], "token" [num_tokens, n], or "row"
    [num_rows, n], the rows named by ``logits_rows``."""
    batching: str = "packed"
    """"packed": the graph contract. An imported graph takes [batch, length]: "padded" with an attention mask, or "alone",
    one sequence a run, when its arithmetic would mix neighbours."""
    labels: tuple[str, ...] = ()
    """Name of each column of the output, for classifiers."""
    problem_type: str = "single_label"
    """Of classifiers: "single_label" (softmax), "multi_label" (sigmoid) or "regression" (the bare value)."""
    aggregation_strategy: str = "simple"
    """Default of token classification: none, simple, first, average or max."""
    pooling: str | None = None
    """Of embeddings: "mean" or "cls"; done by the graph."""
    normalize: bool = False
    """Whether embeddings are scaled to length 1; done by the task."""
    markers: tuple[str, ...] = ()
    """Of relation extraction: the tokens before and after the head, before and after the tail."""


@dataclasses.dataclass(frozen=True, slots=True)
class FileEntry:
    sha256: str
    bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class ModelManifest:
    """All of ``manifest.json``."""

    task: str
    model: ModelSpec
    graphs: dict[str, GraphSpec]
    """By role: "decoder" or "encoder"."""
    tokenizer: TokenizerSpec | None
    cache: CacheSpec | None
    position_offset: int
    """Added to a token's index in its sequence to give position_ids (2 for RoBERTa)."""
    generation: dict[str, float]
    """Sampling defaults of the model's generation_config: temperature, top_p, top_k, min_p, repetition_penalty, max_tokens."""
    files: dict[str, FileEntry]
    proof: dict[str, float]
    """What the closing proof of the export measured, e.g. max_abs_logit_difference."""
    fastserve_version: str
    encoder: EncoderSpec | None = None
    manifest_version: int = MANIFEST_VERSION

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelManifest:
        """Raises :class:`ManifestError` naming the field that is missing, unknown or of the wrong type."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{MANIFEST_FILE}: not JSON ({error})") from None
        version = data.get("manifest_version") if isinstance(data, dict) else None
        if version != MANIFEST_VERSION:
            raise ManifestError(
                f"manifest_version: got {version!r}, allowed: {MANIFEST_VERSION}; export the model again with this FastServe"
            )
        manifest = _build(cls, data, MANIFEST_FILE)
        _check_device(manifest.model.device, manifest.cache)
        return manifest

    @classmethod
    def load(cls, directory: Path) -> ModelManifest:
        """Read ``directory/manifest.json`` and check that every listed file is there with its size (hashes: :meth:`verify`)."""
        path = directory / MANIFEST_FILE
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ManifestError(
                f"{path}: cannot be read ({error.strerror}); was the model exported with `fastserve export`?"
            ) from None
        except UnicodeDecodeError as error:
            raise ManifestError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); the copy is damaged") from None
        manifest = cls.from_json(text)
        for name, entry in manifest.files.items():
            file = directory / name
            if not file.is_file():
                raise ManifestError(
                    f"{file}: listed in {MANIFEST_FILE} but missing; copy the whole version folder or export again"
                )
            if file.stat().st_size != entry.bytes:
                raise ManifestError(
                    f"{file}: {file.stat().st_size} bytes, the manifest says {entry.bytes}; the copy is incomplete"
                )
        return manifest

    def save(self, directory: Path) -> None:
        """Write ``directory/manifest.json``."""
        (directory / MANIFEST_FILE).write_text(self.to_json(), encoding="utf-8")

    def verify(self, directory: Path) -> list[str]:
        """Names of files whose SHA-256 differs from the manifest's. Reads everything: seconds per GB."""
        return [name for name, entry in self.files.items() if hash_file(directory / name).sha256 != entry.sha256]


def _check_device(device: str, cache: CacheSpec | None) -> None:
    if device not in LAYOUTS:
        raise ManifestError(f"{MANIFEST_FILE}.model.device: got {device!r}, allowed: {' or '.join(LAYOUTS)}")
    if cache is not None and (cache.key_layout, cache.value_layout) != LAYOUTS[device]:
        raise ManifestError(f"cache: layout {cache.key_layout}/{cache.value_layout} is not this version's kernel's for {device}")


def hash_files(directory: Path) -> dict[str, FileEntry]:
    """Every file below ``directory``, by its path from there."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): hash_file(path) for path in files}


def hash_file(path: Path) -> FileEntry:
    """SHA-256 and size of a file, read in pieces."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256") if hasattr(hashlib, "file_digest") else _digest(stream)
    return FileEntry(digest.hexdigest(), path.stat().st_size)


def _digest(stream: typing.BinaryIO) -> Any:  # hashlib.file_digest is new in Python 3.11
    digest = hashlib.sha256()
    while piece := stream.read(1 << 20):
        digest.update(piece)
    return digest


_T = TypeVar("_T")


def _build(cls: type[_T], data: Any, where: str) -> _T:
    """A dataclass from parsed JSON, strictly: no unknown key, no missing key, no wrong type."""
    if not isinstance(data, dict):
        raise ManifestError(f"{where}: got {type(data).__name__}, allowed: an object")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in fields:
            raise ManifestError(f"{where}.{key}: unknown key")
    for name, field in fields.items():
        if name not in data and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ManifestError(f"{where}.{name}: missing")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for option in args:
            try:
                return _convert(option, value, where)
            except ManifestError:
                if len([a for a in args if a is not type(None)]) == 1:
                    raise
    elif origin is tuple and isinstance(value, list):
        return tuple(_convert(args[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    elif origin is dict and isinstance(value, dict):
        return {key: _convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    elif _is_scalar(hint, value):
        return value
    raise ManifestError(f"{where}: got {value!r}, allowed: {hint}")


def _is_scalar(hint: Any, value: Any) -> bool:
    """Whether a JSON scalar is of the hinted type; an int may stand for a float, a bool for nothing else."""
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, (int, float))
    return isinstance(hint, type) and isinstance(value, hint)
