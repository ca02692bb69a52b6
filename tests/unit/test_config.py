"""EngineConfig: every key comes from a string, and nothing wrong passes for a default."""

from __future__ import annotations

import dataclasses

import pytest

from fastserve.config import INNER_POLICIES, KV_CACHE_DTYPES, POLICIES, EncoderConfig, EngineConfig, parse_config
from fastserve.core import policy
from fastserve.core.cost_model import CostModel
from fastserve.core.policy import make_policy
from fastserve.core.step_work import StepCosts
from fastserve.errors import ConfigError

GOOD = {
    "policy": ("gittins", "gittins"),
    "priority_inner_policy": ("vtc", "vtc"),
    "mlfq_starvation_ms": ("3000", 3000),
    "max_num_seqs": ("7", 7),
    "max_batched_tokens": (" 512 ", 512),
    "max_queue_size": ("3", 3),
    "max_queue_size_per_tenant": ("2", 2),
    "max_model_len": ("2048", 2048),
    "block_size": ("32", 32),
    "kv_cache_bytes": ("1073741824", 1 << 30),
    "kv_cache_memory_fraction": ("0.25", 0.25),
    "kv_cache_dtype": ("fp16", "fp16"),
    "prefix_cache": ("per_tenant", "per_tenant"),
    "preemption": ("reactive", "reactive"),
    "swap_space_bytes": ("4096", 4096),
    "swap_file_bytes": ("8192", 8192),
    "max_stream_delay_ms": ("0", 0),
    "swap_directory": ("/var/cache", "/var/cache"),
    "num_threads": ("2", 2),
    "spinning": ("off", "off"),
    "share_weights": ("on", "on"),
    "default_deadline_ms": ("1500", 1500),
}

BAD = [
    ("spinning", "yes", "on or off"),
    ("share_weights", "yes", "auto or on or off"),
    ("policy", "lifo", "fcfs"),
    ("policy", "", "fcfs"),
    ("policy", "srpt_oracle", "auto or fcfs or skip_join_mlfq or gittins or vtc or priority"),
    ("priority_inner_policy", "priority", "fcfs or skip_join_mlfq or gittins or vtc"),
    ("mlfq_starvation_ms", "0", "from 1 to 1000000000"),
    ("mlfq_starvation_ms", "0.3", "a whole number"),
    ("max_num_seqs", "-1", "from 0 to 4096"),
    ("max_num_seqs", "4097", "from 0 to 4096"),
    ("max_batched_tokens", "-5", "from 0 to 65536"),
    ("max_batched_tokens", "many", "a whole number"),
    ("max_batched_tokens", "1.5", "a whole number"),
    ("max_queue_size", "0", "from 1"),
    ("max_queue_size_per_tenant", "-1", "from 0"),
    ("max_model_len", "-1", "from 0"),
    ("block_size", "8", "from 16 to 256"),
    ("block_size", "24", "a multiple of 16"),
    ("block_size", "512", "from 16 to 256"),
    ("kv_cache_bytes", "-1", "at least 0"),
    ("kv_cache_bytes", "4G", "a whole number, at least 0"),
    ("kv_cache_memory_fraction", "0", "from 0.01 to 0.95"),
    ("kv_cache_memory_fraction", "1", "from 0.01 to 0.95"),
    ("kv_cache_memory_fraction", "nan", "from 0.01 to 0.95"),
    ("kv_cache_memory_fraction", "half", "a number from 0.01 to 0.95"),
    ("kv_cache_dtype", "bf16", "fp32 or fp16 or int8"),
    ("prefix_cache", "true", "on or per_tenant or off"),
    ("preemption", "swap", "proactive or reactive or recompute"),
    ("swap_space_bytes", "-1", "at least 0"),
    ("swap_file_bytes", "1G", "a whole number, at least 0"),
    ("max_stream_delay_ms", "10001", "a whole number from 0 to 10000"),
    ("swap_directory", "cache/swap", "an absolute path, or nothing"),
    ("num_threads", "nan", "a whole number"),
    ("num_threads", "2000", "from 0 to 1024"),
    ("default_deadline_ms", "-1", "from 0"),
    ("default_deadline_ms", "1" + "0" * 400, "from 0"),
]


def test_the_samples_of_this_test_cover_every_key():
    assert set(GOOD) == {field.name for field in dataclasses.fields(EngineConfig)}
    assert {key for key, _, _ in BAD} == set(GOOD)


@pytest.mark.parametrize("key", GOOD)
def test_every_key_is_parsed_from_a_string(key):
    text, expected = GOOD[key]
    value = getattr(parse_config(EngineConfig, {key: text}), key)
    assert value == expected
    assert type(value) is type(expected)


def test_all_keys_can_be_given_at_once():
    config = parse_config(EngineConfig, {key: text for key, (text, _) in GOOD.items()})
    assert dataclasses.asdict(config) == {key: expected for key, (_, expected) in GOOD.items()}


def test_without_parameters_every_key_has_its_default_and_a_help_text():
    assert parse_config(EngineConfig, {}) == EngineConfig()
    assert all(field.metadata["help"] for field in dataclasses.fields(EngineConfig))


@pytest.mark.parametrize(("key", "text", "allowed"), BAD)
def test_a_bad_value_is_refused_naming_key_value_and_what_is_allowed(key, text, allowed):
    with pytest.raises(ConfigError) as caught:
        parse_config(EngineConfig, {key: text})
    message = str(caught.value)
    assert message.startswith(f"{key}: got ")
    assert text in message
    assert "allowed: " in message
    assert allowed in message


def test_an_unknown_key_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(ConfigError, match=r"^max_num_seq: unknown key") as caught:
        parse_config(EngineConfig, {"max_num_seq": "4"})
    assert all(key in str(caught.value) for key in GOOD)


def test_a_batch_that_could_not_give_every_sequence_a_token_is_refused():
    with pytest.raises(ConfigError, match=r"^max_batched_tokens: got 16, allowed: at least max_num_seqs \(32\)"):
        parse_config(EngineConfig, {"max_batched_tokens": "16"})
    assert parse_config(EngineConfig, {"max_batched_tokens": "16", "max_num_seqs": "16"}).max_batched_tokens == 16
    assert parse_config(EngineConfig, {"max_batched_tokens": "16", "max_num_seqs": "0"}).max_num_seqs == 0
    assert parse_config(EngineConfig, {"max_batched_tokens": "0", "max_num_seqs": "4096"}).max_batched_tokens == 0


def test_values_given_in_python_are_checked_like_those_from_strings():
    with pytest.raises(ConfigError, match=r"^max_num_seqs: got -1"):
        EngineConfig(max_num_seqs=-1)
    with pytest.raises(ConfigError, match=r"^kv_cache_memory_fraction: got nan"):
        EngineConfig(kv_cache_memory_fraction=float("nan"))


def test_a_configuration_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EngineConfig().max_num_seqs = 3


def test_the_policies_that_can_be_configured_are_those_that_exist():
    costs = CostModel(StepCosts(0.01, 0.001), max_num_seqs=4, max_batched_tokens=16)
    assert [type(make_policy(name, costs)).__name__ for name in POLICIES] == [
        "GittinsIndex",
        "FirstComeFirstServed",
        "SkipJoinMLFQ",
        "GittinsIndex",
        "VirtualTokenCounter",
        "PriorityClasses",
    ]
    assert tuple(policy.INNER_POLICIES) == INNER_POLICIES
    assert EngineConfig().policy in POLICIES
    assert EngineConfig().kv_cache_dtype in KV_CACHE_DTYPES


def test_an_encoder_has_its_own_keys_and_no_cache():
    config = parse_config(EncoderConfig, {"task": "reranking", "max_num_seqs": "7", "num_threads": "2"})
    assert config == EncoderConfig(max_num_seqs=7, num_threads=2)
    with pytest.raises(ConfigError, match=r"^kv_cache_bytes: unknown key"):
        parse_config(EncoderConfig, {"kv_cache_bytes": "1"})
    with pytest.raises(ConfigError, match=r"^max_batched_tokens: got 0, allowed: a whole number from 1 to 65536"):
        parse_config(EncoderConfig, {"max_batched_tokens": "0"})
