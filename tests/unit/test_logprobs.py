"""Log-probabilities: of which distribution, in which order, and from the engine to the client's JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastserve.core.logprobs import TokenLogprob
from fastserve.tasks.token_logprobs import PromptLogprobsText, logprobs_json
from fastserve.worker.logprobs import log_probability, position_logprobs
from tests.doubles import ByteTokenizer, make_engine, make_request, run_to_end
from tests.hashing_runner import VOCAB_SIZE, hash_logits

ROW = np.array([1.0, 3.0, 2.0, 3.0, -np.inf], np.float32)


def exact(row):
    row = row.astype(np.float64)
    return row - np.log(np.exp(row).sum())


def ids_and_ranks(position):
    return [(token.token_id, token.rank) for token in position]


def test_the_token_itself_comes_first_and_then_the_likeliest():
    assert ids_and_ranks(position_logprobs(ROW, 2, 2)) == [(2, 3), (1, 1), (3, 2)]
    assert ids_and_ranks(position_logprobs(ROW, 3, 2)) == [(3, 2), (1, 1)]
    assert ids_and_ranks(position_logprobs(ROW, 0, 0)) == [(0, 4)]


def test_equal_tokens_are_ranked_by_id_also_where_the_list_ends():
    assert ids_and_ranks(position_logprobs(ROW, 1, 1)) == [(1, 1)]
    assert ids_and_ranks(position_logprobs(np.zeros(9, np.float32), 0, 3)) == [(0, 1), (1, 2), (2, 3)]


def test_a_token_the_model_rules_out_is_never_among_the_likeliest():
    assert ids_and_ranks(position_logprobs(ROW, 1, 20)) == [(1, 1), (3, 2), (2, 3), (0, 4)]
    assert position_logprobs(ROW, 4, 0) == (TokenLogprob(4, -np.inf, 5),)


def test_each_log_probability_is_the_log_softmax_of_the_row():
    row = np.random.default_rng(3).standard_normal(200).astype(np.float32) * 5
    for token in position_logprobs(row, 7, 5):
        assert token.logprob == pytest.approx(exact(row)[token.token_id], abs=1e-9)
        assert token.logprob == log_probability(row, token.token_id)


def test_the_json_names_each_token_by_its_id_with_its_text():
    position = (TokenLogprob(104, -0.5, 2), TokenLogprob(257, -0.25, 1), TokenLogprob(105, -np.inf, 9))
    (found,) = json.loads(logprobs_json([position], ByteTokenizer()))
    assert list(found) == ["104", "257", "105"]
    assert found["104"] == {"logprob": -0.5, "rank": 2, "decoded_token": "h"}
    assert found["257"]["decoded_token"] == "</s>"
    assert found["105"]["logprob"] is None
    assert logprobs_json([], ByteTokenizer()) == "[]"


def test_the_json_of_a_prompt_is_put_together_piece_by_piece():
    positions = [(TokenLogprob(token_id, -0.5, 1),) for token_id in (104, 105, 106)]
    text = PromptLogprobsText(ByteTokenizer())
    assert text.json() == "[null]"
    text.push(positions[:2])
    text.push(positions[2:])
    assert json.loads(text.json()) == [None, *json.loads(logprobs_json(positions, ByteTokenizer()))]


PROMPT = [(7 * i) % VOCAB_SIZE for i in range(100)]


def expected_prompt(count):
    return [position_logprobs(hash_logits(PROMPT[:end]), PROMPT[end], count) for end in range(1, len(PROMPT))]


@pytest.mark.parametrize("budget", [16, 64, 200])
def test_the_logprobs_of_a_prompt_come_before_its_first_token_however_it_was_cut(budget):
    engine = make_engine(max_batched_tokens=budget)
    requests = [make_request(0, [3, 4], max_tokens=50), make_request(1, PROMPT, max_tokens=3, prompt_logprobs=2)]
    outcomes = run_to_end(engine, requests)
    assert outcomes[1].prompt_logprobs == expected_prompt(2) and outcomes[0].prompt_logprobs == []


def test_an_iteration_computes_few_rows_for_prompts():
    engine = make_engine(max_batched_tokens=400, num_blocks=200)
    for request_id in range(3):
        engine.submit(make_request(request_id, PROMPT, max_tokens=1, prompt_logprobs=0))
    engine.submit(make_request(9, PROMPT, max_tokens=1))
    rows = []
    while engine.has_work:
        engine.step()
        rows.append(engine._runner.batches[-1].num_rows)
    assert max(rows) <= 64 + 4 and sum(rows) == 3 * 100 + 1


def test_a_prompt_of_one_token_has_no_logprobs():
    outcomes = run_to_end(make_engine(), [make_request(1, [5], prompt_logprobs=1)])
    assert outcomes[1].prompt_logprobs == [] and outcomes[1].num_endings == 1
