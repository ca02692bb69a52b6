"""The engines that are compared: their scripts, environments and precisions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

HERE = Path(__file__).parent
OURS = "FastServe"


@dataclasses.dataclass(frozen=True)
class Engine:
    """``script``: its module in this folder. ``environment``: its requirements in ``requirements/``; None: ours."""

    name: str
    script: str
    environment: str | None
    precisions: tuple[str, ...]
    source: str = "checkpoint"
    """What its models are made of: the fp32 checkpoint, or the folder with the .gguf file that it came from."""
    models: str = ""
    """Whose models it serves, when they are another engine's: the name of that script."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table."""

    engine: Engine
    precision: str

    @property
    def name(self) -> str:
        return f"{self.engine.name} {self.precision}"

    @property
    def key(self) -> str:
        """For files, and for ``--only``."""
        return f"{self.engine.script.removesuffix('_peer')}-{self.precision}"

    @property
    def model(self) -> str:
        """Name of the folder with what it serves."""
        return f"{(self.engine.models or self.engine.script).removesuffix('_peer')}-{self.precision}"

    @property
    def ours(self) -> bool:
        return self.engine.name.startswith(OURS)


ENGINES = (
    Engine(f"{OURS}, in process", "fastserve_peer", None, ("fp32", "int8", "int4")),
    Engine(f"{OURS}, Triton gRPC", "fastserve_triton_peer", None, ("fp32", "int8", "int4"), models="fastserve_peer"),
    Engine(
        f"{OURS}, Triton gRPC, a response for each token",
        "fastserve_triton_token_peer",
        None,
        ("fp32", "int8"),
        models="fastserve_peer",
    ),
    Engine("OpenVINO GenAI", "openvino_peer", "openvino", ("fp32", "bf16", "int8", "int4")),
    Engine("vLLM (CPU)", "vllm_peer", "vllm", ("fp32", "bf16")),
    Engine("llama.cpp server", "llama_cpp_peer", "llama_cpp", ("fp32", "bf16", "fp16", "int8", "int4"), source="gguf"),
    Engine("CTranslate2", "ctranslate2_peer", "ctranslate2", ("fp32", "int8")),
    Engine("ONNX Runtime GenAI", "onnxruntime_genai_peer", "onnxruntime_genai", ("fp32", "int4")),
    Engine("transformers", "transformers_peer", None, ("fp32", "bf16")),
)


def rows(only: str = "") -> list[Row]:
    """All, or those whose key begins with one of the words in ``only`` (split by commas)."""
    found = [Row(engine, precision) for engine in ENGINES for precision in engine.precisions]
    words = tuple(word for word in only.split(",") if word)
    return [row for row in found if not words or row.key.startswith(words)]
