"""What each part of int8 and int4 costs a language model, and other ways to quantise it: measured in torch on a text of ours.

    python benchmarks/bench_quantization.py MODEL [--tokens N] [--only PART ...] [--output FILE]

MODEL: a Hugging Face folder or a .gguf file of a model with Llama's layers. One way after the other, its linear layers take rows
and weights that were rounded. Beside the source, on the first N tokens of the text that exports are measured on: by how many
hundredths of a nat a token the predictions diverge (with its standard error), the perplexity of the text, how many likeliest
tokens stay. What is fitted is fitted to another text. Prints a table and writes JSON. ``--only``: ways whose name has one of
these parts.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from report import RESULTS, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn.functional import linear

from fastserve.export.channel_peaks import channel_peaks
from fastserve.export.decoder_quantization import ALPHAS
from fastserve.export.precision_choice import least
from fastserve.export.prose import CALIBRATION_PROSE, QUALITY_PROSE
from fastserve.export.quantization_cost import Rounding, divergences, linear_layers, rounded, rounded_in_4_bits, shifts
from fastserve.export.quiet import quiet_libraries
from fastserve.export.rewrites.smoothing import smoothing_factors
from fastserve.export.source import load, load_config, resolve

GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",), ("lm_head",))
"""Layers of the same rows."""
UNSMOOTHED = "o_proj"
PIECE = 512
Rounded = Callable[[torch.Tensor], torch.Tensor]


def exact(values: torch.Tensor) -> torch.Tensor:
    return values


@dataclasses.dataclass(frozen=True)
class Way:
    """``alphas``: of smoothing, by layer, or one for all, None for none. ``parts``: of the names of layers that are rounded."""

    name: str
    alphas: dict[str, float] | float | None = 0.5
    rows: Rounded = rounded
    weights: Rounded = rounded
    head_weights: Rounded = rounded
    parts: tuple[str, ...] = ("",)


class Source:
    """The model, what fitting knows of it, and what it says of the text. ``tokens``: scored ones."""

    def __init__(self, path: str, tokens: int) -> None:
        found = resolve(path)
        loaded = load(found, load_config(found))
        self.model: Any = loaded.model
        self.layers = linear_layers(self.model)
        prose = loaded.tokenizer(CALIBRATION_PROSE)["input_ids"]
        self.calibration = [prose[begin : begin + PIECE] for begin in range(0, len(prose), PIECE)]
        self.peaks = channel_peaks(self.model, self.calibration)
        self.peaks["lm_head"] = self.peaks["model.norm"]  # of which the head itself was given a few rows only
        self.text = loaded.tokenizer(QUALITY_PROSE)["input_ids"][: tokens + 1]
        self.said = self.say()  # [tokens, vocab_size]

    def say(self) -> torch.Tensor:
        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([self.text]), use_cache=False).logits[0, :-1]
            return torch.log_softmax(logits.float(), -1)

    def group(self, name: str) -> list[str]:
        """The layers that are given the same rows as ``name``."""
        module, _, last = name.rpartition(".")
        members = next(group for group in GROUPS if last in group)
        return [f"{module}.{member}".lstrip(".") for member in members]

    def factors(self, name: str, alpha: float | None) -> torch.Tensor:
        """[k]"""
        weights = torch.stack([self.layers[member].weight.abs().amax(0) for member in self.group(name)]).amax(0)
        if alpha is None or UNSMOOTHED in name:
            return torch.ones_like(weights)
        return torch.from_numpy(smoothing_factors(self.peaks[name], weights.detach().numpy(), alpha))

    def best_alphas(self) -> dict[str, float]:
        """Of each group, what costs it least on the calibration text."""
        tokens = sum(map(len, self.calibration))
        roundings = {name: [Rounding("int8", self.factors(name, alpha)) for alpha in ALPHAS] for name in self.layers}
        found = shifts(self.model, self.calibration, roundings)
        best: dict[str, float] = {}
        for name in self.layers:
            if name not in best:
                costs = divergences([found[member] for member in self.group(name)], tokens)
                best |= dict.fromkeys(self.group(name), ALPHAS[least([costs], 0)])
        return best


@contextmanager
def quantised(source: Source, way: Way) -> Iterator[None]:
    chosen = [name for name in source.layers if any(part in name for part in way.parts)]
    for name in chosen:
        layer, alpha = source.layers[name], way.alphas[name] if isinstance(way.alphas, dict) else way.alphas
        factors = source.factors(name, alpha)
        with torch.no_grad():
            weight = (way.head_weights if name == "lm_head" else way.weights)(layer.weight * factors)
        layer.forward = lambda rows, weight=weight, factors=factors: linear(way.rows(rows / factors), weight)
    yield
    for name in chosen:
        del source.layers[name].forward


def ways(alphas: dict[str, float]) -> list[Way]:
    parts = [Way(f"int8 of {', '.join(group)} alone", parts=group) for group in GROUPS]
    return [
        Way("int8, alpha 0.5"),
        Way("int8, no smoothing", alphas=None),
        Way("int8, weights alone", rows=exact),
        Way("int8, rows alone", weights=exact, head_weights=exact),
        *parts,
        Way("int8, alpha 0.6", alphas=0.6),
        Way("int8, the best alpha of each product", alphas=alphas),
        Way("int4, rows int8, alpha 0.5", weights=rounded_in_4_bits),
        Way("int4, rows int8, alpha 0.3", alphas=0.3, weights=rounded_in_4_bits),
        Way("int4, rows int8, no smoothing", alphas=None, weights=rounded_in_4_bits),
        Way("int4, rows exact, no smoothing", alphas=None, rows=exact, weights=rounded_in_4_bits),
    ]


def measure(source: Source, way: Way) -> dict[str, Any]:
    with quantised(source, way):
        said = source.say()
    divergences = (source.said.exp() * (source.said - said)).sum(-1)
    text = torch.tensor(source.text[1:])[:, None]
    losses = (source.said - said).gather(1, text)[:, 0]
    root = math.sqrt(len(losses))
    return {
        "way": way.name,
        "divergence": float(divergences.mean()),
        "divergence_error": float(divergences.std()) / root,
        "perplexity_rise": math.expm1(float(losses.mean())),
        "perplexity_rise_error": float(losses.std()) / root,
        "agreement": float((said.argmax(-1) == source.said.argmax(-1)).float().mean()),
    }


def table_of(found: Sequence[dict[str, Any]], tokens: int) -> Table:
    table = Table("linear layers", "divergence", "perplexity", "same token", title=f"{tokens} tokens", title_justify="left")
    for row in found:
        table.add_row(
            row["way"],
            f"{100 * row['divergence']:.2f} ± {100 * row['divergence_error']:.2f}",
            f"{row['perplexity_rise']:+.1%} ± {row['perplexity_rise_error']:.1%}",
            f"{row['agreement']:.1%}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--only", nargs="+", default=[""])
    parser.add_argument("--output", type=Path, default=RESULTS / "quantization.json")
    arguments = parser.parse_args()
    console = Console()
    with quiet_libraries():
        source = Source(arguments.model, arguments.tokens)
    chosen = [way for way in ways(source.best_alphas()) if any(part in way.name for part in arguments.only)]
    found = [measure(source, way) for way in track(chosen, "quantising", console=console)]
    console.print(table_of(found, len(source.text) - 1))
    write_json({"model": arguments.model, "tokens": len(source.text) - 1, "ways": found}, arguments.output, console)


if __name__ == "__main__":
    main()
