"""Relation extraction: the relation between two spans of a text, the head and the tail, which markers in the text point out."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from fastserve.errors import InvalidRequest, ManifestError, RequestTooLong
from fastserve.manifest import ModelManifest
from fastserve.tasks.encoding_parameters import read_parameters
from fastserve.tasks.encoding_task import EncodingInput, FloatArray, PreparedEncoding, SequenceMaker, Tensors, required_texts
from fastserve.tasks.text_classification import CLASSIFICATION_PARAMETERS, ScoredLabels
from fastserve.text.tokenizer import Tokenizer
from fastserve.text.windows import Window

Span = tuple[int, int]


class RelationExtraction:
    """The relation-extraction task of one model. Where head and tail lie comes as the spans ``head`` and ``tail``, or as
    markers in ``text_input``. Of a long text the model sees the window around both."""

    def __init__(self, manifest: ModelManifest, tokenizer: Tokenizer, *, default_deadline_ms: int = 0) -> None:
        """Raises ManifestError when the manifest is not a classifier's with four different markers."""
        self._sequences = SequenceMaker(manifest, tokenizer, default_deadline_ms=default_deadline_ms)
        self._labels = ScoredLabels(self._sequences.spec)
        self._markers = self._sequences.spec.markers
        tokens = {tokenizer.encode(marker, add_special_tokens=False) for marker in self._markers}
        if len(self._markers) != 4 or len(tokens) != 4 or () in tokens:
            raise ManifestError(f"encoder.markers: got {self._markers}, allowed: four different ones, around head and tail")

    def prepare(self, item: EncodingInput, request_id: int, now: float) -> PreparedEncoding:
        """Raises InvalidRequest naming the field."""
        parameters = read_parameters(item.parameters, CLASSIFICATION_PARAMETERS)
        texts = required_texts(item, "text_input")
        marked = [self._marked(text, *_spans(item.spans, row)) for row, text in enumerate(texts)]
        whole = self._sequences.tokenizer.whole_windows([text for text, _ in marked])
        windows = [
            self._window(window, span, truncation=parameters["truncation"])
            for window, (_, span) in zip(whole, marked, strict=True)
        ]
        request = self._sequences.request_windows(request_id, [windows], now, parameters)
        return PreparedEncoding(request, functools.partial(self._answer, parameters))

    def _answer(self, parameters: Mapping[str, Any], outputs: Sequence[FloatArray]) -> Tensors:
        return self._labels.tensors(outputs, parameters)

    def _marked(self, text: str, head: Span | None, tail: Span | None) -> tuple[str, Span]:
        """The text with its markers, and the characters in it from the first marker to the last."""
        found = _find_markers(text, [marker.strip() for marker in self._markers])
        if head is None or tail is None:
            if found is None:
                raise InvalidRequest("text_input", text, f"head and tail, or each marker once: {' '.join(self._markers)}")
            return text, found
        if found is not None:
            raise InvalidRequest("text_input", text, "a text without markers beside head and tail")
        for field, (start, end) in (("head", head), ("tail", tail)):
            if not 0 <= start < end <= len(text):
                raise InvalidRequest(field, [start, end], f"start and end of a part of text_input's {len(text)} characters")
        if head[0] < tail[1] and tail[0] < head[1]:
            raise InvalidRequest("tail", list(tail), f"a span that does not overlap the head's, {list(head)}")
        pieces = sorted([(head, self._markers[:2]), (tail, self._markers[2:])])
        (first, (open_first, close_first)), (second, (open_second, close_second)) = pieces
        parts = [
            text[: first[0]],
            open_first + text[slice(*first)] + close_first,
            text[first[1] : second[0]],
            open_second + text[slice(*second)] + close_second,
            text[second[1] :],
        ]
        return "".join(parts), (len(parts[0]), sum(map(len, parts[:4])))

    def _window(self, whole: Window, span: Span, *, truncation: bool) -> Window:
        """The window around the characters of ``span``, with as much context on both sides; the first one to truncate."""
        limit = self._sequences.spec.max_length
        if len(whole) <= limit:
            return whole
        begin, stop = whole.run(0)
        room = limit - (len(whole) - (stop - begin))
        inside = [index for index, (start, end) in enumerate(whole.offsets[begin:stop]) if start < span[1] and end > span[0]]
        first, last = inside[0], inside[-1] + 1
        if last - first > room:
            detail = f"at most {room} from the first marker to the last, the room in the model's {limit}"
            raise RequestTooLong("text_input", f"{last - first} tokens", detail)
        if not truncation:
            start = max(0, min(first - (room - (last - first)) // 2, stop - begin - room))
            return whole.keep((begin, stop), start, start + room)
        if last > room:
            raise InvalidRequest("truncation", True, f"false, because the markers end beyond the model's first {room} tokens")
        return whole.keep((begin, stop), 0, room)


def _spans(spans: Mapping[str, Sequence[Span]], row: int) -> tuple[Span | None, Span | None]:
    """Head and tail of a row; either both or none."""
    head, tail = spans.get("head"), spans.get("tail")
    if head is None and tail is None:
        return None, None
    if head is None or tail is None:
        raise InvalidRequest("head" if head is None else "tail", None, "a span, because the other one is given")
    return head[row], tail[row]


def _find_markers(text: str, markers: Sequence[str]) -> Span | None:
    """Characters from the first marker to the last when the text has each of them once, and each pair in its order; else
    None."""
    if any(text.count(marker) != 1 for marker in markers):
        return None
    spans = []
    for opening, closing in (markers[:2], markers[2:]):
        start, end = text.index(opening), text.index(closing)
        if end < start:
            return None
        spans.append((start, end + len(closing)))
    (start, end), (other_start, other_end) = sorted(spans)
    return (start, other_end) if end <= other_start else None
