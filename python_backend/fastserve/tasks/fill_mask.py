"""Fill-mask: the likeliest tokens for each mask in a text, as the transformers pipeline gives them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.core.encoding import TokenSequence
from fastserve.errors import InvalidRequest, ManifestError
from fastserve.manifest import ModelManifest
from fastserve.tasks.answer_tensors import by_text, finite, json_tensor, softmax
from fastserve.tasks.encoding_parameters import WINDOW_PARAMETERS, read_parameters, text_list
from fastserve.tasks.encoding_task import EncodingInput, FloatArray, PreparedEncoding, SequenceMaker, Tensors, required_texts
from fastserve.tasks.ragged_tensors import ragged_numbers, ragged_strings
from fastserve.tasks.sampling_parameters import Parameter, whole_number
from fastserve.tasks.window_context import widest_context
from fastserve.text.tokenizer import Tokenizer
from fastserve.text.windows import Window, WindowLimits, cut_window

IndexArray = npt.NDArray[np.intp]

FILL_MASK_PARAMETERS = {
    **WINDOW_PARAMETERS,
    "top_k": Parameter(whole_number(1), "a whole number, at least 1", 5),
    "targets": Parameter(text_list(), "a JSON list of words", None),
}

MOST_TOKENS = 1_000_000
"""In all the texts of an answer: every proposal brings the whole text with it, and one client must not hold up the others."""


@dataclasses.dataclass(frozen=True, slots=True)
class MaskedText:
    """A text with masks, and the windows that are run for it."""

    token_ids: tuple[int, ...]
    """The whole text's, or the only window's of a truncated one; special tokens included."""
    masks: tuple[int, ...]
    """Index of each mask in ``token_ids``, ascending."""
    sequences: tuple[TokenSequence, ...]
    """The windows in which some mask has most context; their rows are the masks, in order."""


class FillMask:
    """The fill-mask task of one model. In a long text every mask is filled by the window that shows most of the text around
    it; windows in which no mask is filled are not run."""

    def __init__(self, manifest: ModelManifest, tokenizer: Tokenizer, *, default_deadline_ms: int = 0) -> None:
        """Raises ManifestError when the manifest is not that of a masked language model."""
        self._sequences = SequenceMaker(manifest, tokenizer, default_deadline_ms=default_deadline_ms)
        if manifest.tokenizer is None or manifest.tokenizer.mask_token_id is None:
            raise ManifestError("tokenizer.mask_token_id: got None, allowed: the id of the token that stands for a missing one")
        if self._sequences.spec.output not in ("row", "token"):
            raise ManifestError(f"encoder.output: got {self._sequences.spec.output!r}, allowed: row or token, to fill masks")
        self._by_row = self._sequences.spec.output == "row"
        self._vocab_size = manifest.model.vocab_size
        self._mask_id = manifest.tokenizer.mask_token_id
        self._pad_id = manifest.tokenizer.pad_token_id
        self._tokenizer = tokenizer

    def prepare(self, item: EncodingInput, request_id: int, now: float) -> PreparedEncoding:
        """Raises InvalidRequest naming the field."""
        parameters = read_parameters(item.parameters, FILL_MASK_PARAMETERS)
        targets = self._target_ids(parameters["targets"]) if parameters["targets"] is not None else None
        limits = self._sequences.limits(parameters["truncation"])
        given = required_texts(item, "text_input")
        wholes = self._tokenizer.whole_windows(given)
        texts = [self._masked(text, whole, limits) for text, whole in zip(given, wholes, strict=True)]
        num_proposals = min(parameters["top_k"], self._vocab_size if targets is None else len(targets))
        _check_size(texts, num_proposals)
        request = self._sequences.request(request_id, [one for text in texts for one in text.sequences], now, parameters)
        return PreparedEncoding(request, functools.partial(self._answer, texts, targets, num_proposals))

    def _target_ids(self, targets: Sequence[str]) -> IndexArray:
        """The token of each word: its own, else the first of those it is split into. [num_targets], each once."""
        found = {}
        for target in targets:
            token_id = self._tokenizer.token_id(target)
            token_ids = self._tokenizer.encode(target, add_special_tokens=False) if token_id is None else (token_id,)
            if not token_ids or token_ids[0] >= self._vocab_size:
                raise InvalidRequest("targets", target, "words that the model has a token for")
            found[token_ids[0]] = target
        if not found:
            raise InvalidRequest("targets", list(targets), "a JSON list of at least one word")
        return np.array(list(found), np.intp)

    def _masked(self, text: str, whole: Window, limits: WindowLimits) -> MaskedText:
        """Raises InvalidRequest for a text without a mask."""
        windows = cut_window(whole, limits)
        token_ids = windows[0].token_ids if limits.truncation else whole.token_ids
        masks = tuple(index for index, token_id in enumerate(token_ids) if token_id == self._mask_id)
        if not masks:
            (mask,) = self._tokenizer.tokens([self._mask_id])
            where = f"a text with {mask} in it" + (" before it is truncated" if self._mask_id in whole.token_ids else "")
            raise InvalidRequest("text_input", text, where)
        sequences = []
        for window, share in zip(windows, widest_context(windows), strict=True):
            rows = tuple(row for row in range(share.start, share.stop) if window.token_ids[row] == self._mask_id)
            if rows:
                sequences.append(self._sequences.sequence(window, rows))
        return MaskedText(token_ids, masks, tuple(sequences))

    def _answer(
        self, texts: Sequence[MaskedText], targets: IndexArray | None, num_proposals: int, outputs: Sequence[FloatArray]
    ) -> Tensors:
        """``outputs``: [num_masks, vocab_size] for each window, or [num_tokens, vocab_size] of a graph that computes all."""
        filled: list[list[list[dict[str, Any]]]] = []
        for text, own in zip(texts, by_text(outputs, (len(text.sequences) for text in texts)), strict=True):
            rows = itertools.chain.from_iterable(
                output if self._by_row else output[list(sequence.rows)]
                for sequence, output in zip(text.sequences, own, strict=True)
            )
            filled.append(self._fill(text, rows, targets, num_proposals))
        flat = [[proposal for proposals in masks for proposal in proposals] for masks in filled]
        return {
            "token_str": ragged_strings([[proposal["token_str"] for proposal in row] for row in flat]),
            "token": ragged_numbers([[proposal["token"] for proposal in row] for row in flat], -1, np.int32),
            "score": ragged_numbers([[proposal["score"] for proposal in row] for row in flat], 0.0, np.float32),
            "result": json_tensor([masks[0] if len(masks) == 1 else masks for masks in filled]),
        }

    def _fill(
        self, text: MaskedText, logits: Iterable[FloatArray], targets: IndexArray | None, num_proposals: int
    ) -> list[list[dict[str, Any]]]:
        """The pipeline's dicts, best first, for each mask of a text. ``logits``: [vocab_size] for each mask."""
        filled = []
        for mask, row in zip(text.masks, logits, strict=True):
            probabilities = finite(softmax(row))
            if targets is not None:
                probabilities = probabilities[targets]
            best = _highest(probabilities, num_proposals)
            token_ids = best if targets is None else targets[best]
            pairs = zip(token_ids.tolist(), probabilities[best].tolist(), strict=True)
            filled.append([self._proposal(text, mask, token_id, score) for token_id, score in pairs])
        return filled

    def _proposal(self, text: MaskedText, mask: int, token_id: int, score: float) -> dict[str, Any]:
        """Special tokens are left out of the text, except when other masks wait to be filled."""
        token_ids = [*text.token_ids[:mask], token_id, *text.token_ids[mask + 1 :]]
        shown = [one for one in token_ids if one != self._pad_id]
        return {
            "score": score,
            "token": token_id,
            "token_str": self._tokenizer.decode([token_id], skip_special_tokens=False),
            "sequence": self._tokenizer.decode(shown, skip_special_tokens=len(text.masks) == 1),
        }


def _check_size(texts: Sequence[MaskedText], num_proposals: int) -> None:
    """Raises InvalidRequest when the texts of the answer would be too long."""
    masks, tokens = sum(len(text.masks) for text in texts), sum(len(text.masks) * len(text.token_ids) for text in texts)
    if tokens > MOST_TOKENS:
        raise InvalidRequest("text_input", f"{masks} masks", "fewer or shorter texts: each mask brings its text with it")
    if num_proposals * tokens > MOST_TOKENS:
        raise InvalidRequest("top_k", num_proposals, f"at most {MOST_TOKENS // tokens}: each proposal brings the text with it")


def _highest(values: FloatArray, count: int) -> IndexArray:
    """Indices of the ``count`` highest of ``values`` [n], highest first; of equals the first ones first."""
    if count < len(values):
        likely = np.flatnonzero(values >= np.partition(values, -count)[-count])
    else:
        likely = np.arange(len(values))
    order = np.argsort(-values[likely], kind="stable")
    best: IndexArray = likely[order[:count]]
    return best
