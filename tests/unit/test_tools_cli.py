"""The root command: fast to import, one readable line for what a user can cause, the right exit codes."""

from __future__ import annotations

import argparse
import subprocess
import sys
import types
from pathlib import Path

import pytest

import fastserve
from fastserve.errors import ToolError
from fastserve.tools import cli, doctor, infer, serve
from fastserve.tools.launcher import LaunchOptions

HEAVY = ("torch", "transformers", "sklearn", "numpy", "onnxruntime", "tritonclient", "grpc", "httpx", "rich", "asyncio")


def run_command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """The exit code of a command that raises ``error``."""

    def raise_it(arguments: object) -> int:
        raise error

    monkeypatch.setattr(doctor, "run", raise_it)
    return cli.main(["doctor"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        *([name, "--help"] for name in ("bench", "doctor", "list", "chat", "serve", "infer", "evaluate")),
    ],
)
def test_saying_what_it_can_do_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom fastserve.tools import cli\n"
        f"try: cli.main({arguments})\nexcept SystemExit as ended: assert ended.code == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    environment = {"PYTHONPATH": str(Path(fastserve.__file__).parent.parent)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stderr.strip() == "[]"


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"fastserve {fastserve.__version__}\n")


@pytest.mark.parametrize("name", ["serve", "list", "infer", "chat", "evaluate", "bench", "doctor", "export"])
def test_the_help_of_every_command_is_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: fastserve {name}" in capsys.readouterr().out


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["frobnicate"], ["serve", "--no-such-flag"], ["infer"], ["serve", "--http-port", "70000"]])
def test_wrong_usage_is_exit_code_two(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["my-model", "one", "two", "--url", "there"],
        ["my-model", "--url", "there", "one", "two"],
        ["--url", "there", "my-model", "one", "--json", "two"],
        ["my-model", "--url", "there", "--", "one", "two"],
    ],
)
def test_options_may_stand_anywhere(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[argparse.Namespace] = []
    monkeypatch.setattr(infer, "run", lambda parsed: given.append(parsed) or 0)
    assert cli.main(["infer", *arguments]) == 0
    assert [(each.model, each.prompts, each.url) for each in given] == [("my-model", ["one", "two"], "there")]


def test_a_deliberate_error_is_one_line_on_stderr_and_exit_code_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, ToolError("no [bold]Triton[/bold] found: install it")) == 1
    assert capsys.readouterr() == ("", "fastserve: no [bold]Triton[/bold] found: install it\n")


def test_ctrl_c_is_exit_code_130_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "fastserve: interrupted\n"


def test_a_command_whose_packages_are_missing_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.SUBCOMMANDS, "doctor", cli.Subcommand("a_module_nobody_has", "", "client"))
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == "fastserve: a_module_nobody_has is not installed: pip install 'triton-fastserve[client]'\n"


def test_a_reader_that_went_away_is_not_a_traceback() -> None:
    environment = {"PYTHONPATH": str(Path(fastserve.__file__).parent.parent)}
    script = (
        "import sys\nfrom fastserve.tools import cli, doctor\n"
        "def talk(_):\n  for _ in range(9000): print('x' * 99)\n"
        "doctor.run = talk\nsys.exit(cli.main(['doctor']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_serve_passes_its_arguments_on_and_ends_with_zero_on_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    started: list[tuple[Path, LaunchOptions]] = []

    class Launcher:
        http_url, grpc_url, metrics_url = "http://127.0.0.1:9", "127.0.0.1:9001", "http://127.0.0.1:8/metrics"

        def __init__(self, repository: Path, options: LaunchOptions) -> None:
            started.append((repository, options))

        def __enter__(self) -> Launcher:
            return self

        def __exit__(self, *_: object) -> None:
            started.append((Path("stopped"), LaunchOptions()))

        def models(self) -> list[types.SimpleNamespace]:
            return [types.SimpleNamespace(name="llama", ready=True), types.SimpleNamespace(name="old", ready=False)]

        def task(self, model: str) -> str:
            return tasks[model]

        def wait(self) -> None:
            raise KeyboardInterrupt

    tasks = {"llama": "text-generation"}
    monkeypatch.setattr(serve, "TritonLauncher", Launcher)
    arguments = ["--model-repository", str(tmp_path), "--http-port", "9", "--host", "0.0.0.0", "--model-control-mode", "poll"]
    assert cli.main(["serve", *arguments, "--", "--rate-limit=off"]) == 0
    (repository, options), (stopped, _) = started
    assert (repository, stopped, options.http_port, options.host) == (tmp_path, Path("stopped"), 9, "0.0.0.0")
    assert (options.model_control_mode, options.extra_args) == ("poll", ("--rate-limit=off",))
    out = capsys.readouterr().out
    assert "Ready: llama\n" in out and "curl -s http://127.0.0.1:9/v2/models/llama/generate -d" in out
    assert "fastserve chat llama --url 127.0.0.1:9001" in out
    tasks["llama"] = "token-classification"
    assert cli.main(["serve", *arguments]) == 0
    out = capsys.readouterr().out
    assert "fastserve infer llama TEXT --url 127.0.0.1:9001" in out and "chat" not in out
