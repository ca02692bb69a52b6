"""Runs a real Triton on this machine, without Docker, with our backend in it; owns it from start to clean end."""

from __future__ import annotations

import dataclasses
import http.client
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

from fastserve.errors import ModelNotFound, ToolError
from fastserve.tools import bounded_log, complete_configs, ports, server_status, supervisor
from fastserve.tools.backend_directory import build_backend_directory
from fastserve.tools.supervised import SupervisedServer
from fastserve.tools.triton_install import TritonInstall, find_triton, server_environment

ModelControlMode = Literal["none", "poll", "explicit"]

_START_ATTEMPTS = 3
_POLL_S = 0.05
_ALL_MODELS = "*"
_WHOLE_LOG = 100_000


@dataclasses.dataclass(frozen=True, slots=True)
class LaunchOptions:
    """How Triton is started. ``host``: a name or address of this machine. Ports: 0 picks a free one. Times are in seconds."""

    host: str = "127.0.0.1"
    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int = 0
    model_control_mode: ModelControlMode = "none"
    load_models: tuple[str, ...] = ()
    """Models to load at the start, mode "explicit" only; "*" is all of them."""
    extra_args: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Added to this process's environment."""
    ready_timeout_s: float = 600.0
    stop_timeout_s: float = 20.0
    """After SIGTERM; then the server is killed. Requests in flight get a quarter of it to finish."""
    log_file: Path | None = None
    """Appended to; at half of ``log_bytes`` it becomes ``<log_file>.1``. A device or named pipe is only written to, and
    then no error can quote it. None: in the temporary work directory, gone after :meth:`TritonLauncher.stop`."""
    log_bytes: int = 16 << 20
    echo_log: bool = False
    """Copy Triton's log to stderr as it is written."""


class PortInUse(ToolError):
    """Somebody else listens on a port Triton was to use."""


class TritonLauncher:
    """One ``tritonserver`` and everything that belongs to it: processes, shared memory, work directory, log.

    Use as a context manager, or :meth:`start` and :meth:`stop`. The server ends when this process does, however it ends.
    Not thread-safe, except that :meth:`stop` may be called from any one thread.
    """

    def __init__(
        self, model_repository: Path, options: LaunchOptions | None = None, install: TritonInstall | None = None
    ) -> None:
        """``model_repository``: Triton's folder of models; ``install``: None finds one (:func:`find_triton`)."""
        self.options = options or LaunchOptions()
        self._repository = model_repository
        self._install = install
        self._directory: Path | None = None
        self._server: SupervisedServer | None = None
        self._address = self.options.host
        self._death: str | None = None
        self._shm_prefix = ""
        self._ports = (self.options.http_port, self.options.grpc_port, self.options.metrics_port)
        self._tail: list[str] = []
        self.pid: int | None = None
        """Process id of ``tritonserver`` while it runs."""

    @property
    def http_url(self) -> str:
        return f"http://{ports.bracketed(self._client_host)}:{self._ports[0]}"

    @property
    def grpc_url(self) -> str:
        return f"{ports.bracketed(self._client_host)}:{self._ports[1]}"

    @property
    def metrics_url(self) -> str:
        return f"http://{ports.bracketed(self._client_host)}:{self._ports[2]}/metrics"

    @property
    def _client_host(self) -> str:
        return ports.reachable_address(self._address)

    def start(self) -> TritonLauncher:
        """Start Triton and return when it is live and every model is ready.

        Raises :class:`ModelNotFound` (no such repository), :class:`PortInUse`, or :class:`ToolError`: no Triton here, a
        model that failed (its name and reason), a server that died or did not get ready in time (the end of its log).
        """
        if self._server is not None:
            raise ToolError("this launcher's Triton is already running")
        self._check_options()
        automatic = 0 in (self.options.http_port, self.options.grpc_port, self.options.metrics_port)
        for attempt in range(_START_ATTEMPTS):
            try:
                self._start_once()
                return self
            except PortInUse:  # a free port can be taken between being picked and being used
                self.stop()
                if not automatic or attempt == _START_ATTEMPTS - 1:
                    raise
            except BaseException:
                self.stop()
                raise
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """End the server (SIGTERM, after ``stop_timeout_s`` SIGKILL) and remove what belonged to it. May be called twice."""
        self.death()
        server, self._server = self._server, None
        try:
            if server is not None:
                server.end()
        finally:
            self._tail = self.log_tail(1000)
            self.pid = None
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
                self._directory = None

    def wait(self) -> None:
        """Block until the server ends by itself."""
        if self._server is not None:
            self._server.wait()

    def death(self) -> str | None:
        """After the server ended by itself: the sentence that says which model's process died, if that was the reason."""
        if self._server is not None:
            self._death = self._server.death()
        return self._death

    def is_running(self) -> bool:
        return self._server is not None and self._server.is_running()

    def models(self) -> list[server_status.ModelStatus]:
        """The state of every model in the repository."""
        statuses = server_status.model_statuses(self._client_host, self._ports[0])
        if self.options.model_control_mode == "explicit" or all(status.state for status in statuses):
            return statuses
        return server_status.explain_unknown(statuses, self.log_tail(_WHOLE_LOG))

    def task(self, model: str) -> str:
        """What a loaded model is for, as :data:`fastserve.config.TASK_PARAMETER` says."""
        return server_status.model_task(self._client_host, self._ports[0], model)

    def log_tail(self, lines: int = 40) -> list[str]:
        """The last lines Triton and the backend's stubs wrote, also after the end; nothing when the log is no regular file."""
        if self._directory is None:
            return self._tail[-lines:]
        heading = supervisor.log_heading(self._shm_prefix)
        return bounded_log.read_tail(self._log_file(self._directory), lines, heading)

    def __enter__(self) -> TritonLauncher:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _check_options(self) -> None:
        """What can be told before Triton is asked."""
        options, repository = self.options, self._repository
        if not repository.is_dir():
            raise ModelNotFound(f"model repository {repository} does not exist; `fastserve export` creates one")
        if not os.access(repository, os.R_OK | os.X_OK):
            raise ToolError(f"model repository {repository} cannot be read by this user")
        chosen = [port for port in (options.http_port, options.grpc_port, options.metrics_port) if port]
        if len(set(chosen)) < len(chosen):
            raise ToolError(f"the http, grpc and metrics ports must differ, got {', '.join(map(str, chosen))}")
        if options.load_models and options.model_control_mode != "explicit":
            raise ToolError("models to load can be named in the model control mode explicit only; the others load by themselves")

    def _start_once(self) -> None:
        install = self._install or find_triton()
        self._address = ports.numeric_address(self.options.host)
        self._ports = self._choose_ports()
        self._shm_prefix = f"fastserve-{uuid.uuid4().hex[:12]}-"
        self._death = None
        try:
            self._directory = Path(tempfile.mkdtemp(prefix="fastserve-triton-"))
            backends = build_backend_directory(self._directory / "backends", install)
        except OSError as error:
            raise ToolError(f"no work directory could be made ({error}); free some space or set TMPDIR to another disk") from None
        job = supervisor.Job(
            command=[str(install.server), *self._arguments(backends)],
            environment=server_environment(install, {**os.environ, **self.options.environment}),
            directory=str(self._directory),
            log_file=str(self._log_file(self._directory)),
            log_bytes=self.options.log_bytes,
            shm_prefix=self._shm_prefix,
            stop_timeout_s=self.options.stop_timeout_s,
            echo=self.options.echo_log,
        )
        self._server = SupervisedServer(job)
        self.pid = self._server.pid
        self._await_ready(self._server)

    def _choose_ports(self) -> tuple[int, int, int]:
        options = self.options
        wanted = {"http": options.http_port, "grpc": options.grpc_port, "metrics": options.metrics_port}
        for name, port in wanted.items():
            if port and not ports.is_free(self._address, port):
                raise PortInUse(
                    f"{name} port {port} is in use on {options.host}; stop what listens there or choose another --{name}-port"
                )
        picked = iter(port for port in ports.free_ports(self._address, 6) if port not in wanted.values())
        http, grpc, metrics = (port or next(picked) for port in wanted.values())
        return http, grpc, metrics

    def _arguments(self, backends: Path) -> list[str]:
        options = self.options
        arguments = [f"--backend-directory={backends}", f"--model-repository={self._repository.resolve()}"]
        for name, port in zip(("http", "grpc", "metrics"), self._ports, strict=True):
            ipv6 = f"[{self._address}]" if name == "grpc" else f"ipv6:{self._address}"  # two libraries, two spellings
            arguments += [f"--{name}-address={ipv6 if ':' in self._address else self._address}", f"--{name}-port={port}"]
        arguments += [f"--model-control-mode={options.model_control_mode}", "--exit-on-error=false"]
        arguments += [f"--load-model={name}" for name in options.load_models]
        arguments += [f"--exit-timeout-secs={max(1, int(options.stop_timeout_s / 4))}"]
        arguments += [f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}"]
        # What is loaded later, or from elsewhere, may need it.
        loads_only_these = options.model_control_mode == "none" and not options.extra_args
        if loads_only_these and complete_configs.are_complete(self._repository):
            arguments.append(complete_configs.DO_NOT_COMPLETE)
        return arguments + list(options.extra_args)

    def _await_ready(self, server: SupervisedServer) -> None:
        deadline = time.monotonic() + self.options.ready_timeout_s
        while not self._is_ready():
            if not server.is_running():
                self._raise_ended()
            if time.monotonic() >= deadline:
                self._raise_with_log(f"Triton was not ready after {self.options.ready_timeout_s:g} s")
            time.sleep(_POLL_S)

    def _is_ready(self) -> bool:
        """Raises :class:`ToolError` as soon as a model has failed."""
        if not server_status.is_live(self._client_host, self._ports[0]):
            return False
        try:
            statuses = self.models()
        except (OSError, http.client.HTTPException):  # it died just now; the next look says so
            return False
        wanted = self.options.load_models
        if self.options.model_control_mode == "explicit" and _ALL_MODELS not in wanted:
            server_status.require(statuses, wanted)
            statuses = server_status.explain_unknown(
                [status for status in statuses if status.name in wanted], self.log_tail(_WHOLE_LOG)
            )
        if failures := server_status.describe_failures(statuses):
            raise ToolError(f"Triton could not load every model:\n{failures}")
        return all(status.ready or status.reason == "unloaded" for status in statuses)

    def _raise_ended(self) -> None:
        if death := self.death():
            self._raise_with_log(f"{death} while Triton started")
        if any("already in use" in line for line in self.log_tail()):
            raise PortInUse(f"a port of {self._ports} on {self.options.host} was taken while Triton started; try again")
        self._raise_with_log("Triton ended while starting")

    def _raise_with_log(self, message: str) -> None:
        if shown := "\n".join(f"  {line}" for line in server_status.without_usage(self.log_tail(1000))[-15:]):
            raise ToolError(f"{message}; the end of its log:\n{shown}")
        raise ToolError(f"{message}; its log is in {self.options.log_file}" if self.options.log_file else message)

    def _log_file(self, directory: Path) -> Path:
        return (self.options.log_file or directory / "triton.log").absolute()  # the supervisor works in another directory
