"""int8 of a decoder: what must be known of the source before it is gone, and the graph's rewrite."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fastserve.errors import InvalidRequest
from fastserve.export.channel_peaks import channel_peaks
from fastserve.export.encoders.sample_texts import SAMPLE_TEXTS
from fastserve.export.options import ExportOptions
from fastserve.export.quality import SourceQuality, read_text, source_quality
from fastserve.export.rewrites.quantization import constant_products, quantize_products
from fastserve.export.rewrites.smoothing import Peaks, module_of, smooth
from fastserve.export.source import LoadedModel


@dataclasses.dataclass(frozen=True, slots=True)
class Int8Ground:
    """``peaks``: see :func:`~fastserve.export.channel_peaks.channel_peaks`."""

    peaks: Peaks
    quality: SourceQuality


def prepare_int8(loaded: LoadedModel, options: ExportOptions, max_model_len: int) -> Int8Ground:
    """Run the source over texts. Raises InvalidRequest for a text that cannot be read, ToolError for one too short."""
    known = loaded.model.get_input_embeddings().weight.shape[0]  # a tokenizer may have more ids than the model has rows

    def tokens_of(text: str) -> list[int]:
        return [token for token in loaded.tokenizer(text, verbose=False)["input_ids"] if token < known]

    quality = source_quality(loaded.model, tokens_of(read_text(options.quality_text)), max_model_len)
    texts = [tokens[:max_model_len] for text in SAMPLE_TEXTS if (tokens := tokens_of(text))]
    return Int8Ground(channel_peaks(loaded.model, texts), quality)


def quantize_decoder(model: ir.Model, peaks: Peaks, keep: Sequence[str]) -> None:
    """Every product with a constant weight, the head and a tied embedding among them, but those of modules whose name has a part
    that is in ``keep``. Raises InvalidRequest for a part that no name has, UnsupportedModel as ``quantize_products``."""
    products = constant_products(model.graph)
    names = {id(product): module_of(product) for product in products}
    for part in keep:
        if not any(part in name for name in names.values()):
            raise InvalidRequest("keep_fp32", part, f"a part of the name of a module: {', '.join(sorted(set(names.values())))}")
    smooth(model.graph, peaks)
    RemoveUnusedNodesPass()(model)
    chosen = [product for product in products if not any(part in names[id(product)] for part in keep)]
    quantize_products(model.graph, chosen)
    RemoveUnusedNodesPass()(model)
