"""`fastserve bench step` from the outside, on a tiny exported model."""

from __future__ import annotations

import json
import shutil

import pytest

from fastserve.config import EngineConfig
from fastserve.engine.loader import load_engine
from fastserve.export.options import ExportOptions
from fastserve.export.text_generation import export_model
from fastserve.manifest import ModelManifest
from fastserve.tools.cli import main
from tests.doubles import FakeClock
from tests.synthetic.tiny_models import llama_config, save_model


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench_step")
    save_model(llama_config(), folder / "source")
    export_model(str(folder / "source"), ExportOptions(output=folder / "repository", name="tiny"))
    return folder / "repository"


def bench(*arguments):
    return main(["bench", "step", *map(str, arguments)])


SMALL = ("--sequences", 3, "--input-tokens", "5-20", "--output-tokens", 6, "--set", "kv_cache_bytes=4194304")


def test_it_shows_where_an_iteration_goes_and_writes_the_figures(repository, capsys, tmp_path):
    file = tmp_path / "out.json"
    assert bench("tiny", "--model-repository", repository, *SMALL, "--profile", "--json", file) == 0
    printed, found = capsys.readouterr().out, json.loads(file.read_text(encoding="utf-8"))
    assert "18 output tokens in" in printed and "only decodes" in printed and "PagedAttention" in printed
    for group in found["steps"].values():
        assert sum(group["run_ms"].values()) == pytest.approx(group["phases_ms"]["run"])
        assert sum(group["phases_ms"].values()) == pytest.approx(group["mean_ms"])
        assert all(group["run_ms"][kind] > 0 for kind in ("linear", "attention", "norm, elementwise", "head"))
    assert found["output_tokens"] == 18
    assert found["set"] == {"kv_cache_bytes": "4194304"}


def test_settings_are_the_models_own_unless_the_command_says_otherwise(repository, capsys, tmp_path):
    model, file = tmp_path / "own", tmp_path / "out.json"
    shutil.copytree(repository / "tiny", model)
    with (model / "config.pbtxt").open("a", encoding="utf-8") as config:
        config.write('parameters { key: "kv_cache_dtype" value: { string_value: "int8" } }\n')
        config.write('parameters { key: "kv_cache_bytes" value: { string_value: "1" } }\n')
    assert bench(model, *SMALL, "--profile", "--json", file) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "settings of config.pbtxt: kv_cache_dtype=int8 settings of --set: kv_cache_bytes=4194304" in printed
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["config_pbtxt"] == {"kv_cache_dtype": "int8", "kv_cache_bytes": "1"}
    assert bench(model, "--sequences", 1) == 1, "the model's own pool of a byte counts"
    (model / "config.pbtxt").write_text("no configuration", encoding="utf-8")
    assert bench(model, *SMALL) == 1
    assert "config.pbtxt" in capsys.readouterr().err


def test_a_folder_will_do_and_sampling_is_measured_too(repository, capsys):
    assert bench(repository / "tiny", *SMALL, "--temperature", "0.8") == 0
    assert bench(repository / "tiny" / "1", *SMALL) == 0
    assert "PagedAttention" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere: neither a folder with an exported model nor the name of one in"),
        (("tiny", "--set", "max_seqs=3"), "max_seqs: unknown key"),
        (("tiny", "--json", "no/such/folder/out.json"), "cannot be written"),
        (("tiny", "--sequences", 1, "--input-tokens", 5000, "--set", "kv_cache_bytes=4194304"), "a request failed: "),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(repository, capsys, arguments, message):
    assert bench(*arguments, "--model-repository", repository) == 1
    assert message in capsys.readouterr().err.replace("\n", "")


@pytest.mark.parametrize(("setting", "entry"), [({}, "1"), ({"spinning": "off"}, "0")])
def test_threads_of_a_run_spin_unless_the_configuration_says_otherwise(repository, setting, entry):
    directory = repository / "tiny" / "1"
    config = EngineConfig(kv_cache_bytes=1 << 20, max_batched_tokens=64, **setting)
    engine = load_engine(directory, ModelManifest.load(directory), config, FakeClock())
    options = engine._runner._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == entry
