"""Costs of steps on disk: they come back as they were, and nothing on the disk can hurt."""

from __future__ import annotations

import dataclasses
import json

import pytest

from fastserve.config import EngineConfig
from fastserve.core.cost_model import CostModel
from fastserve.core.step_work import StepCosts
from fastserve.engine.cost_file import CostFile, circumstances
from fastserve.manifest import CacheSpec, FileEntry, LayerCacheSpec
from tests.doubles import make_manifest

HERE = {"model": "a", "processor": "b"}
COSTS = dataclasses.asdict(StepCosts(0.1, 0.1))


def make_model(base_s=0.006, token_s=0.0015):
    return CostModel(StepCosts(base_s, token_s), max_num_seqs=16, max_batched_tokens=256)


def refused(file, caplog):
    model = make_model(1.0, 1.0)
    assert not file.restore(model)
    assert (model.costs.base_s, model.costs.token_s) == (1.0, 1.0)
    return caplog.text


def test_what_was_kept_is_where_the_next_start_begins(tmp_path):
    file = CostFile(tmp_path / "cache", HERE)
    file.profiled = StepCosts(0.005, 0.001)
    file.keep(make_model())
    model, found = make_model(1.0, 1.0), CostFile(tmp_path / "cache", HERE)
    assert found.restore(model)
    assert (model.costs.base_s, model.costs.token_s, found.profiled) == (0.006, 0.0015, file.profiled)


def test_without_a_file_nothing_is_said(tmp_path, caplog):
    assert refused(CostFile(tmp_path / "none", HERE), caplog) == ""


def test_other_circumstances_have_a_file_of_their_own(tmp_path, caplog):
    CostFile(tmp_path, HERE).keep(make_model())
    assert refused(CostFile(tmp_path, HERE | {"processor": "c"}), caplog) == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ('{"base_s": 0.1', "Expecting"),
        ("[]", "not measured for this model"),
        ('{"circumstances": {"model": "x"}, "base_s": 0.1, "token_s": 0.1}', "not measured for this model"),
        (json.dumps({"circumstances": HERE, "profiled": COSTS, "base_s": "fast", "token_s": 0.1}), "base_s: got 'fast'"),
        (json.dumps({"circumstances": HERE, "profiled": COSTS, "base_s": 0.1}), "token_s: got None"),
        (json.dumps({"circumstances": HERE, **COSTS}), "profiled: got None"),
        (json.dumps({"circumstances": HERE, **COSTS, "profiled": {**COSTS, "row_s": -1}}), "row_s: got -1"),
    ],
)
def test_a_damaged_or_foreign_file_is_left_alone_and_named(tmp_path, caplog, text, why):
    file = CostFile(tmp_path, HERE)
    file.path.write_text(text)
    said = refused(file, caplog)
    assert str(file.path) in said and why in said


def test_bytes_that_are_no_text_are_a_damaged_file(tmp_path, caplog):
    file = CostFile(tmp_path, HERE)
    file.path.write_bytes(b"\xff\xfe\x00")
    assert "is not used" in refused(file, caplog)


def test_another_users_file_is_left_alone(tmp_path, caplog, monkeypatch):
    file = CostFile(tmp_path, HERE)
    file.keep(make_model())
    monkeypatch.setattr("os.getuid", lambda: file.path.stat().st_uid + 1)
    assert "another user" in refused(file, caplog)


def test_a_folder_that_cannot_be_written_costs_a_line_in_the_log(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    CostFile(tmp_path / "file" / "cache", HERE).keep(make_model())
    assert "measures them again" in caplog.text


def test_costs_of_nothing_are_not_kept(tmp_path):
    file = CostFile(tmp_path, HERE)
    file.keep(make_model(0.0, 0.0))
    assert not file.path.exists()


def test_the_circumstances_change_with_the_model_the_threads_and_the_settings():
    manifest = make_manifest(files={"model.onnx": FileEntry("aa", 1)})
    config = EngineConfig()
    base = circumstances(manifest, config, 2)
    others = (
        circumstances(make_manifest(files={"model.onnx": FileEntry("ab", 1)}), config, 2),
        circumstances(manifest, config, 1),
        circumstances(manifest, dataclasses.replace(config, max_batched_tokens=128), 2),
        circumstances(manifest, dataclasses.replace(config, kv_cache_dtype="fp16"), 2),
        circumstances(dataclasses.replace(manifest, cache=CacheSpec((LayerCacheSpec(1, 1, window=64),))), config, 2),
    )
    assert all(other != base for other in others)
    assert circumstances(manifest, dataclasses.replace(config, policy="fcfs"), 2) == base
