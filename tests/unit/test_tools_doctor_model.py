"""The doctor on a model: refused by name, or what it takes and how fast this machine may be at best."""

from __future__ import annotations

import json

import pytest

from fastserve.errors import UnsupportedModel
from fastserve.export import inspection as inspecting
from fastserve.export.inspection import Inspection
from fastserve.tools import cli, doctor_model
from fastserve.tools.doctor_machine import MachineRates, measure_machine, predict

DECODER = Inspection("small", "text-generation", "llama", 1_000_000, 800_000, 1024, 2048, ("a note",), 200_000)
ENCODER = Inspection("ner", "token-classification", "bert", 1_000_000, 800_000, 0, 512, ())
RATES = MachineRates(flops=1.6e9, read_bytes=3.2e8)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with 1 GB free and the rates of RATES."""
    monkeypatch.setattr(doctor_model, "available_memory", lambda: 1 << 30)
    monkeypatch.setattr(doctor_model, "measure_machine", lambda: RATES)


def find(monkeypatch: pytest.MonkeyPatch, found: Inspection | Exception) -> None:
    def inspect_model(source: str, task: str | None) -> Inspection:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(inspecting, "inspect_model", inspect_model)


def test_a_step_is_bound_by_reading_weights_for_one_answer_and_by_arithmetic_for_many() -> None:
    said = predict(RATES, 800_000, 32)  # reading 3.2 MB: 10 ms; multiplying: 1 ms a token
    assert said.alone == pytest.approx(100)
    assert said.batch == pytest.approx(1000) == said.prompt
    assert predict(RATES, 800_000, 2).batch == pytest.approx(200)


def test_the_machine_is_measured_by_the_best_run_within_the_budget() -> None:
    times = iter([0.0, 0.0, 3.0, 3.0, 4.0, 4.0, 8.0, 0.0, 0.0, 2.0, 2.0, 9.0])
    rates = measure_machine(5.0, lambda: next(times))
    assert rates.flops == pytest.approx(2 * 256 * 1024 * 1024 / 1.0)
    assert rates.read_bytes == pytest.approx((256 << 20) / 2.0)


@pytest.mark.usefixtures("machine")
def test_a_supported_model_is_shown_with_memory_speed_and_the_command_that_exports_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find(monkeypatch, DECODER)
    assert cli.main(["doctor", "my-model"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in (
        "1,000,000 parameters",
        "3.8 MB in fp32",
        "with --dtype int8, 1.3 MB or more with int4",
        "1,024 bytes a token",
        "2,048 tokens",
        "100 tokens/s for one answer",
    ):
        assert words in out
    assert "note: a note" in out and "fastserve export my-model --task text-generation" in out


@pytest.mark.usefixtures("machine")
def test_an_encoder_has_no_cache_and_one_rate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find(monkeypatch, ENCODER)
    assert cli.main(["doctor", "my-ner"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "1,000 tokens/s" in out and "longest window 512 tokens" in out and "KV cache" not in out


@pytest.mark.usefixtures("machine")
def test_a_model_that_does_not_fit_makes_the_exit_code_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find(monkeypatch, DECODER)
    monkeypatch.setattr(doctor_model, "available_memory", lambda: 5_000_000)
    assert cli.main(["doctor", "my-model"]) == 1
    assert "too large for the memory" in capsys.readouterr().out


@pytest.mark.usefixtures("machine")
def test_a_feature_that_is_not_supported_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find(monkeypatch, UnsupportedModel("mpt: ALiBi position bias cannot be represented"))
    assert cli.main(["doctor", "my-model"]) == 1
    assert "Not supported. mpt: ALiBi position bias" in capsys.readouterr().out
    assert cli.main(["doctor", "my-model", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["supported"] is False and "ALiBi" in said["refusal"] and said["inspection"] is None


@pytest.mark.usefixtures("machine")
def test_the_engines_pool_is_a_share_of_what_the_weights_leave(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find(monkeypatch, DECODER)
    monkeypatch.setattr(doctor_model, "available_memory", lambda: 14_000_000)
    cli.main(["doctor", "my-model", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["kv_pool_bytes"] == int((14_000_000 - 4_000_000) * 0.4)
    assert said["prediction"]["batch_size"] == 32 and said["inspection"]["max_length"] == 2048


def test_a_task_without_a_model_is_said_to_be_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--task", "fill-mask"]) == 1
    assert "fastserve doctor MODEL --task" in capsys.readouterr().err
