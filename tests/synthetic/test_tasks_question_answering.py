"""Question answering against the pipeline of transformers 4 (5 has none), written out with every span tried."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from fastserve.errors import RequestTooLong
from tests.synthetic.test_tasks_classification import LONG, TEXTS, assert_same
from tests.synthetic.tiny_encoders import MAX_LENGTH, TINY_ENCODERS
from tests.synthetic.token_task_models import STRIDE, Encoder, encoder


def answers_by_trying_every_span(
    model: Encoder, question: str, context: str, top_k: int, longest: int, may_be_none: bool
) -> list[dict[str, Any]]:
    encoded = model.tokenizer(
        question, context, truncation="only_second", max_length=MAX_LENGTH, stride=STRIDE, return_overflowing_tokens=True
    )
    proposals, null_scores = [], []
    for encoding in encoded.encodings:
        types = encoding.type_ids if "token_type_ids" in encoded else ()
        output = model.run(encoding.ids, types)
        inside = [owner == 1 for owner in encoding.sequence_ids]
        counted = torch.tensor([position == 0 or own for position, own in enumerate(inside)])
        start, end = (
            torch.where(counted, logits[0].double(), -torch.inf).softmax(0).tolist()
            for logits in (output.start_logits, output.end_logits)
        )
        null_scores.append(start[0] * end[0])
        spans = [
            (start[first] * end[last], first, last)
            for first in range(len(inside))
            for last in range(first, min(first + longest, len(inside)))
            if inside[first] and inside[last]
        ]
        spans.sort(key=lambda span: -span[0])
        proposals += [(score, *characters(encoding, first, last)) for score, first, last in spans[: 2 * top_k + 10]]
    answers: list[dict[str, Any]] = []
    for score, begin, stop in proposals:
        same = [one for one in answers if one["answer"].lower() == context[begin:stop].lower()]
        if same:
            same[0]["score"] += score
        else:
            answers.append({"answer": context[begin:stop], "score": score, "start": begin, "end": stop})
    if may_be_none:
        answers.append({"answer": "", "score": min(null_scores), "start": 0, "end": 0})
    return sorted(answers, key=lambda one: -one["score"])[:top_k]


def characters(encoding: Any, first: int, last: int) -> tuple[int, int]:
    words = encoding.token_to_word(first), encoding.token_to_word(last)
    if None in words:
        return encoding.offsets[first][0], encoding.offsets[last][1]
    return encoding.word_to_chars(words[0], 1)[0], encoding.word_to_chars(words[1], 1)[1]


QUESTIONS = ["where was Marie Curie born ?", "日本 👍 [SEP] <mask>"]
CONTEXTS = [
    *TEXTS[1:7],
    "Kofi Annan, born in Ghana, met Marie Curie-Skłodowska at Google's office in Paris...",
    "[SEP] <mask> in [UNK] and <unk> the </s> text [MASK]",
    "e\u0301le\u0300ve ﬁne ½ Ⅳ ① naïve ǅ İstanbul ß ẞ",
    " ".join(TEXTS * 2),
]

WAYS = [(1, 15, False), (1, 15, True), (5, 15, True), (20, 3, False), (3, 1000, True)]
"""Number of answers, longest answer, whether there may be none."""


@pytest.mark.parametrize(
    ("family", "way"),
    [(family, way) for family in TINY_ENCODERS for way in (WAYS if family in ("bert", "roberta") else WAYS[2:3])],
)
def test_a_question_has_the_answers_that_trying_every_span_finds(family, way):
    model = encoder("question-answering", family)
    top_k, longest, may_be_none = way
    parameters = {"top_k": top_k, "max_answer_length": longest, "handle_impossible_answer": may_be_none}
    for question in QUESTIONS:
        tensors = model.answer({"question": [question] * len(CONTEXTS), "context": CONTEXTS}, **parameters)
        for row, context in enumerate(CONTEXTS):
            expected = answers_by_trying_every_span(model, question, context, top_k, longest, may_be_none)
            found = json.loads(tensors["result"][row, 0])
            assert_same(found, expected)
            best = {name: tensors[name][row, 0] for name in ("answer", "score", "start", "end")}
            assert_same({**best, "answer": best["answer"].decode(), "score": float(best["score"])}, expected[0])


def test_a_question_longer_than_the_window_is_refused():
    model = encoder("question-answering", "bert")
    with pytest.raises(RequestTooLong, match=r"^question: got '\d+ tokens', allowed: at most \d+, so that context has room"):
        model.answer({"question": [LONG], "context": ["Ada was born in London."]})
