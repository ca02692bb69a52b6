"""The container's files, as far as they can be checked without an engine: parsed, and every name in them exists."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml
from dockerfile_parse import DockerfileParser

from fastserve.tools import doctor_checks, serve, triton_install
from fastserve.worker import shared_weights
from tests.local_servers import LocalHttpServer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
SERVICES = ("fastserve", "fastserve-gpu")
PORTS = {"http_port": 8000, "grpc_port": 8001, "metrics_port": 8002}


def with_defaults(text: str) -> str:
    """What compose reads where the variables ``${NAME:-default}`` are not set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def read_strictly(text: str) -> Any:
    options = compose_spec.PyOptions()
    options.apply_merge = True
    composed = options.from_yaml(text)
    composed.validate()
    return composed.to_spec()


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(yaml.safe_load(with_defaults(COMPOSE.read_text()))["services"])


@pytest.fixture
def instructions(tmp_path: Path) -> list[tuple[str, str]]:
    """(instruction, value) of the Dockerfile, in order."""
    copy = tmp_path / "Dockerfile"
    copy.write_text((ROOT / "deploy" / "Dockerfile").read_text())
    parsed = DockerfileParser(str(copy)).structure
    return [(entry["instruction"], entry["value"]) for entry in parsed if entry["instruction"] != "COMMENT"]


def values(instructions: list[tuple[str, str]], name: str) -> list[str]:
    return [value for instruction, value in instructions if instruction == name]


def served_as(command: list[str]) -> argparse.Namespace:
    """The options of a ``fastserve serve`` command line; ends the test when there is one that serve does not know."""
    assert command[:2] == ["fastserve", "serve"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add_arguments(parser)
    return parser.parse_args(command[2:])


def extras() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def test_the_compose_file_obeys_the_specification_and_has_a_profile_for_cpu_and_gpu() -> None:
    spec = read_strictly(with_defaults(COMPOSE.read_text()))
    assert {name: list(service.profiles) for name, service in spec.services.items()} == dict(
        zip(SERVICES, (["cpu"], ["gpu"]), strict=True)
    )


@pytest.mark.parametrize(("right", "wrong"), [("shm_size", "shm_sizes"), ("10s", "soon")])
def test_the_reader_of_the_compose_file_sees_a_mistake(right: str, wrong: str) -> None:
    text = with_defaults(COMPOSE.read_text())
    assert right in text
    with pytest.raises(Exception, match=wrong):
        read_strictly(text.replace(right, wrong))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_builds_from_files_that_are_here_with_an_extra_that_exists(services: dict[str, Any], name: str) -> None:
    build = services[name]["build"]
    assert (ROOT / build["context"] / build["dockerfile"]).is_file()
    assert build["args"]["EXTRA"] in extras()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_serves_read_only_models_on_the_ports_it_publishes_on_loopback(services: dict[str, Any], name: str) -> None:
    service = services[name]
    options = served_as(service["command"])
    assert {field: getattr(options, field) for field in PORTS} == PORTS
    assert service["ports"] == [f"127.0.0.1:{port}:{port}" for port in PORTS.values()]
    (models,) = [volume for volume in service["volumes"] if volume["target"] == str(options.model_repository)]
    assert models["read_only"] is True and (ROOT / models["source"]).is_dir()
    assert options.host == "0.0.0.0"  # inside; else nothing would reach it through the published ports


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_not_root_starts_again_and_has_shared_memory_enough_for_the_doctor(
    services: dict[str, Any], name: str
) -> None:
    service = services[name]
    assert service["user"].split(":")[0] not in ("0", "root") and service["cap_drop"] == ["ALL"]
    assert service["restart"] == "unless-stopped"
    gigabytes = re.fullmatch(r"(\d+)gb", service["shm_size"])
    assert gigabytes is not None and int(gigabytes[1]) << 30 >= doctor_checks.MIN_SHARED_MEMORY


def test_only_the_gpu_service_asks_for_gpus(services: dict[str, Any]) -> None:
    assert "deploy" not in services["fastserve"]
    (device,) = services["fastserve-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_the_image_copies_what_exists_and_what_the_context_lets_through(instructions: list[tuple[str, str]]) -> None:
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [source for value in values(instructions, "COPY") if "--from" not in value for source in value.split()[:-1]]
    assert sorted(copied) == sorted(let_through)
    assert all((ROOT / source).exists() for source in copied)
    stages = [image.split(" AS ")[1] for image in values(instructions, "FROM") if " AS " in image]
    assert [value.split()[0] for value in values(instructions, "COPY") if "--from" in value] == [f"--from={stages[0]}"]


def test_the_image_builds_from_everything_the_build_reads() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["scikit-build"]["wheel"]["packages"]
    needed = {project["project"]["readme"], *project["project"]["license-files"], *packages}
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {Path(name).parts[0] for name in needed} <= let_through


def test_the_image_stands_on_a_pinned_triton_whose_python_we_allow(instructions: list[tuple[str, str]]) -> None:
    arguments = dict(value.split("=", 1) for value in values(instructions, "ARG"))
    assert re.fullmatch(r"\d\d\.\d\d-py3", arguments["TRITON_TAG"])
    assert {image.split(" AS ")[0] for image in values(instructions, "FROM")} == {"nvcr.io/nvidia/tritonserver:${TRITON_TAG}"}
    assert arguments["EXTRA"] in extras()
    readme = (ROOT / "deploy" / "README.md").read_text()
    assert f"`nvcr.io/nvidia/tritonserver:{arguments['TRITON_TAG']}`" in readme and "Python 3.10" in readme


def test_the_image_serves_as_another_user_with_variables_the_code_reads(instructions: list[tuple[str, str]]) -> None:
    assert values(instructions, "USER")[-1].split(":")[0] not in ("0", "root")
    variables = dict(pair.split("=", 1) for value in values(instructions, "ENV") for pair in shlex.split(value))
    assert {name for name in variables if name.startswith("FASTSERVE_")} == {
        triton_install.TRITON_VARIABLE,
        shared_weights.CACHE_VARIABLE,
    }
    options = served_as(json.loads(values(instructions, "CMD")[-1]))
    assert (str(options.model_repository), options.host) == ("/models", "0.0.0.0")
    exposed = [int(port) for value in values(instructions, "EXPOSE") for port in value.split()]
    assert exposed == list(PORTS.values()) == [options.http_port, options.grpc_port, options.metrics_port]


def health_commands(services: dict[str, Any], instructions: list[tuple[str, str]]) -> list[list[str]]:
    (health,) = values(instructions, "HEALTHCHECK")
    return [json.loads(health.partition("CMD ")[2]), *(services[name]["healthcheck"]["test"][1:] for name in SERVICES)]


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (400, False)])
def test_every_health_check_is_a_program_that_hears_whether_triton_is_ready(
    services: dict[str, Any], instructions: list[tuple[str, str]], status: int, healthy: bool
) -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = LocalHttpServer(Handler)
    try:
        for python, flag, code in health_commands(services, instructions):
            assert (python, flag) == ("python3", "-c")
            here = code.replace("http://127.0.0.1:8000", server.url)
            done = subprocess.run([sys.executable, flag, here], capture_output=True, check=False)
            assert (done.returncode == 0) is healthy
    finally:
        server.close()
    assert set(asked) == {"/v2/health/ready"}


def test_the_readme_of_the_container_says_that_it_was_not_executed_and_names_the_wheel() -> None:
    readme = (ROOT / "deploy" / "README.md").read_text()
    assert "Not executed on our machines" in readme
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"triton_fastserve-{version}-py3-none-" in readme and f":{version}-cpu" in COMPOSE.read_text()
