"""Tiny random encoders with the task that is to be compared and the transformers pipeline that says what is right.

The sequences a task makes are run through the torch model one at a time, so that what is compared is the task alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from fastserve.core.encoding import TokenSequence
from fastserve.manifest import TokenizerSpec
from fastserve.tasks.encoding_task import EncodingInput, EncodingTask, make_task
from fastserve.text.tokenizer import Tokenizer
from tests.encoder_doubles import encoder_manifest
from tests.synthetic.tiny_encoders import AUTO_CLASSES, LABELS, MAX_LENGTH, save_encoder

STRIDE = MAX_LENGTH // 2
"""The question-answering pipeline's, for a model of this length."""

OUTPUTS = {"feature-extraction": "sequence", "fill-mask": "row"}
"""What a row is about; where it is not said, a token."""

Rows = Callable[[Any, TokenSequence], np.ndarray]
"""From the output of the torch model for a sequence to what the engine would give the task."""

ROWS: dict[str, Rows] = {
    "token-classification": lambda output, _: output.logits[0].numpy(),
    "question-answering": lambda output, _: torch.stack([output.start_logits[0], output.end_logits[0]], dim=-1).numpy(),
    "fill-mask": lambda output, sequence: output.logits[0, list(sequence.rows)].numpy(),
    "feature-extraction": lambda output, _: output.last_hidden_state[0].mean(dim=0).numpy(),
}


@dataclasses.dataclass
class Encoder:
    """One random model, its task, and where there is one the pipeline that says what is right."""

    model: Any
    tokenizer: Any
    task: EncodingTask
    rows: Rows
    reference: Any

    runs: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def run(self, token_ids: Any, token_type_ids: Any = ()) -> Any:
        """Each sequence is run once; token types that are all 0 are as good as none."""
        key = tuple(token_ids), tuple(token_type_ids) if any(token_type_ids) else ()
        if key not in self.runs:
            types = {"token_type_ids": torch.tensor([key[1]])} if key[1] else {}
            with torch.inference_mode():
                self.runs[key] = self.model(input_ids=torch.tensor([key[0]]), **types)
        return self.runs[key]

    def answer(self, texts: dict[str, list[str]], **parameters: Any) -> dict[str, Any]:
        prepared = self.task.prepare(EncodingInput(texts, parameters=parameters), 0, 0.0)
        sequences = prepared.request.sequences
        assert all(len(sequence.token_ids) <= MAX_LENGTH for sequence in sequences)
        return prepared.answer([self.rows(self.run(item.token_ids, item.token_type_ids), item) for item in sequences])

    def results(self, texts: list[str], **parameters: Any) -> list[Any]:
        return [json.loads(value) for value in self.answer({"text_input": texts}, **parameters)["result"][:, 0]]


@functools.cache
def encoder(task: str, family: str, labels: tuple[str, ...] = ()) -> Encoder:
    """``labels``: instead of the task's own."""
    labels = labels or LABELS.get(task, ())
    changes = {"id2label": dict(enumerate(labels)), "label2id": {}} if labels else {}
    with tempfile.TemporaryDirectory() as name:
        directory = save_encoder(task, family, Path(name), seed=1, **changes)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(transformers|torch|safetensors)\..*")
            source = transformers.AutoTokenizer.from_pretrained(directory)
            model = AUTO_CLASSES[task].from_pretrained(directory).eval()
            reference = None
            if task != "question-answering":  # transformers 5 has no such pipeline
                reference = transformers.pipeline(task, model=model, tokenizer=source, device="cpu")
        spec = TokenizerSpec(
            "tokenizer.json",
            (),
            pad_token_id=source.pad_token_id,
            special_tokens={name: str(token) for name, token in source.special_tokens_map.items()},
            mask_token_id=source.mask_token_id,
        )
        tokenizer = Tokenizer(directory, spec)
    manifest = encoder_manifest(
        task,
        max_length=MAX_LENGTH,
        stride=STRIDE,
        token_types="token_type_ids" in source.model_input_names,
        vocab_size=len(source),
        labels=labels,
        output=OUTPUTS.get(task, "token"),
    )
    manifest = dataclasses.replace(manifest, tokenizer=spec)
    return Encoder(model, source, make_task(manifest, tokenizer), ROWS[task], reference)
