"""How much memory an export of a language model needs, stage by stage, against the size of its weights.

    python benchmarks/bench_export_memory.py [--parameters N] [--model FOLDER] [--dtype DTYPE]

Exports a model with random weights (or yours) and reads the process's peak resident set in each stage. It counts every page the
process maps, also those of the weights' files that the system could take back. Two figures a stage: at its peak, and of that what
belongs to no file (anonymous memory, sampled).
"""

from __future__ import annotations

import argparse
import contextlib
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from report import RESULTS, write_json
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fastserve.export.options import ExportOptions, Stage
from fastserve.export.quiet import quiet_libraries
from fastserve.export.text_generation import export_model

VOCAB_SIZE, HEAD_SIZE, NUM_LAYERS = 32000, 64, 24
SAMPLE_SECONDS = 0.02


class MemoryWatch:
    """Peak memory of this process by stage, in bytes."""

    def __init__(self) -> None:
        self.peaks: dict[str, dict[str, int]] = {}
        self._stage: str | None = None
        self._anonymous = 0

    def begin(self, stage: Stage | None) -> None:
        """A stage begins, or with None the last one ends."""
        if self._stage is not None:
            self.peaks[self._stage] = {"resident": read_status("VmHWM"), "anonymous": self._anonymous}
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._anonymous = 0
        self._stage = stage.name.lower() if stage is not None else None

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """Sample anonymous memory meanwhile: the system keeps no peak of it."""
        ended = threading.Event()

        def sample() -> None:
            while not ended.wait(SAMPLE_SECONDS):
                self._anonymous = max(self._anonymous, read_status("RssAnon"))

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def read_status(key: str) -> int:
    """A size in /proc/self/status, in bytes."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def save_random_model(num_parameters: int, directory: Path) -> None:
    """A Llama of about that many parameters, as a Hugging Face folder."""
    width = HEAD_SIZE * max(1, round(((num_parameters / (14 * NUM_LAYERS)) ** 0.5) / HEAD_SIZE))
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=width // HEAD_SIZE,
        num_key_value_heads=width // HEAD_SIZE,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=300e6, help="of the random model (default: 3e8)")
    parser.add_argument("--model", help="export this instead")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "int8", "int4"))
    parser.add_argument("--output", type=Path, default=RESULTS / "export_memory.json")
    arguments = parser.parse_args()
    console, watch = Console(), MemoryWatch()
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        source = arguments.model
        if source is None:
            source = f"{folder}/random"
            save_random_model(int(arguments.parameters), Path(source))
        before = read_status("VmRSS")
        options = ExportOptions(Path(folder) / "repository", name="model", dtype=arguments.dtype)
        with watch.sampling():
            result = export_model(source, options, watch.begin)
            watch.begin(None)
    weights = 4 * result.manifest.model.num_parameters
    table = Table(title=f"{result.manifest.model.num_parameters:,} parameters, {weights / 1e6:,.0f} MB of weights")
    for column in ("stage", "seconds", "peak, MB", "times the weights", "anonymous, MB"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    table.add_row("before", "", f"{before / 1e6:,.0f}", f"{before / weights:.2f}", "")
    for stage, peak in watch.peaks.items():
        seconds = result.seconds[stage.upper()]
        row = (f"{seconds:.0f}", f"{peak['resident'] / 1e6:,.0f}", f"{peak['resident'] / weights:.2f}")
        table.add_row(stage, *row, f"{peak['anonymous'] / 1e6:,.0f}")
    console.print(table)
    write_json({"weights": weights, "before": before, "peaks": watch.peaks}, arguments.output, console)


if __name__ == "__main__":
    main()
