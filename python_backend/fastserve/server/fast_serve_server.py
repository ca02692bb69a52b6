"""Serves a model, or a Python function of it, from a Python program: a real Triton with FastServe in it."""

from __future__ import annotations

import contextlib
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn

from fastserve.errors import ConfigError, ToolError, shorten
from fastserve.functions.function import ServedFunction
from fastserve.functions.host import FunctionHost
from fastserve.server import preparation, repository
from fastserve.server.addresses import launch_options
from fastserve.server.inference import ServedModel
from fastserve.server.model_source import Checkpoint, ExportedModel, LiveModel, find_source, task_of
from fastserve.server.resources import Resources
from fastserve.server.server_config import ServerConfig
from fastserve.tools.launcher import TritonLauncher
from fastserve.triton.function_io import FUNCTION_TASK, FunctionSettings, render_function_config

Inference = Callable[..., Sequence[Any]]

DEFAULT_BATCH_SIZE = 16
"""Of functions; an exported model has its own."""
QUEUE_DELAY_US = 500
"""How long Triton holds a request back for others to join its batch. What comes while the function is busy waits for it
anyhow and joins the next batch, so this need only cover requests that come at the same time."""
_TERMINATED = 128 + signal.SIGTERM
_RUNNING: weakref.WeakSet[FastServeServer] = weakref.WeakSet()


class FastServeServer:
    """One model behind a Triton of its own, as long as this process runs and this object lives.

    ::

        with FastServeServer("bert-finetuned-ner", config={"port": 8000}) as server:
            print(server.infer("Ada lived in London"))

    Without ``inference`` the model is exported (unless it is an export) and FastServe runs it. With ``inference``, a
    function ``(model, texts)`` or ``(model, texts, parameters)`` that returns one JSON-able result for each text, Triton's
    requests come back into this process in batches; ``num_workers`` threads run the function.
    """

    def __init__(self, model: Any = None, inference: Inference | None = None, config: Mapping[str, Any] | None = None) -> None:
        """``model``: a path, a hub id, an export, or an object; ``config["model_path"]`` instead of it is as good.

        Raises ConfigError naming the key, ModelNotFound or ManifestError. Loads nothing yet.
        """
        self._config = ServerConfig.parse(config)
        given = [item for item in (model, self._config.model_path) if item is not None]
        if len(given) != 1:
            allowed = "one of model and config['model_path']: a path, a hub id, or a model"
            raise ConfigError(f"model: got {'both' if given else 'none'}, allowed: {allowed}")
        self._source = find_source(given[0])
        self._inference = inference
        self._model: Any = None  # what the function gets, once it is loaded
        self._resources: Resources | None = None
        self._served: ServedModel | None = None
        self._finalizer: Callable[[], object] | None = None
        self._changing = threading.Lock()
        if inference is None:
            _check_native(self._source, self._config)
        else:
            _check_function(self._source, self._config)
            ServedFunction(inference, None)  # refuses what cannot be called

    @property
    def name(self) -> str:
        """The model's name in Triton."""
        return self._config.name or self._source.name

    @property
    def http_url(self) -> str:
        """``http://host:port``, of a running server."""
        return self._launcher().http_url

    @property
    def grpc_url(self) -> str:
        """``host:port``, of a running server."""
        return self._launcher().grpc_url

    @property
    def metrics_url(self) -> str:
        """Triton's metrics page, of a running server."""
        return self._launcher().metrics_url

    def start(self) -> FastServeServer:
        """Get the model ready, start Triton, and return when it answers.

        Raises ConfigError, ModelNotFound, UnsupportedModel, ProofFailed, PortInUse or ToolError; then nothing is left
        running.
        """
        with self._changing:
            if self._resources is not None:
                raise ToolError(f"the server of {self.name} is running; stop() it before it is started again")
            options = launch_options(self._config, _own_servers())
            resources = Resources()
            try:
                task = self._lay_out(resources)
                resources.launcher = TritonLauncher(resources.work.path / "models", options)
                resources.launcher.start()
            except BaseException:
                resources.close()
                raise
            self._resources = resources
            self._served = ServedModel(resources.launcher.http_url, self.name, task)
            self._finalizer = weakref.finalize(self, resources.close)
            _RUNNING.add(self)
        return self

    def wait(self) -> None:
        """Block until the server ends: by Ctrl-C or SIGTERM, which stop it cleanly, or because another thread stops it.

        After SIGTERM the process ends with exit code 143. Raises :class:`ToolError` with the reason when the server ended
        by itself, or never ran.
        """
        resources, launcher = self._resources, self._launcher()
        try:
            with _terminate_cleanly():
                launcher.wait()
        except KeyboardInterrupt:
            self.stop()
            return
        except SystemExit:
            self.stop()
            raise
        with self._changing:
            stopped = self._resources is not resources
        if not stopped:
            death, tail = launcher.death(), launcher.log_tail(15)
            self.stop()
            if death is not None:
                raise ToolError(f"{death}; config['log_file'] keeps what the server of {self.name} says")
            raise ToolError(f"the server of {self.name} ended by itself; the end of its log:\n" + "\n".join(tail))

    def stop(self) -> None:
        """End the server: what the function works on is finished, what waits is answered UNAVAILABLE. May be called twice,
        and from any thread."""
        with self._changing:
            finalizer, served = self._finalizer, self._served
            self._resources = self._served = self._finalizer = None
            _RUNNING.discard(self)
            if finalizer is not None:
                finalizer()
            if served is not None:
                served.close()

    def infer(self, texts: str | Sequence[str], **parameters: Any) -> Any:
        """Ask the running server: the result for a text, or a list of results for a list of texts, in order.

        ``parameters``: request parameters of the task; ``text_pair``, ``context``, ``head``, ``tail`` and
        ``candidate_labels`` are the inputs of these names, one for all texts or a list with one for each. Raises
        :class:`fastserve.tools.client.RequestFailed`, InvalidRequest or ToolError.
        """
        served = self._served
        if served is None:
            raise self._not_running()
        results = served.infer([texts] if isinstance(texts, str) else list(texts), parameters)
        return results[0] if isinstance(texts, str) else results

    def __enter__(self) -> FastServeServer:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def __repr__(self) -> str:
        served = self._served
        return f"<FastServeServer {self.name}: {'not running' if served is None else served.url}>"

    def _lay_out(self, resources: Resources) -> str:
        """Fill the repository that Triton is to serve; the model's task."""
        config, models = self._config, resources.work.path / "models"
        if self._inference is not None:
            self._lay_out_function(self._inference, resources)
            return FUNCTION_TASK
        source = self._source
        if not isinstance(source, ExportedModel):
            task = config.task or task_of(source)
            repository.engine_parameters(task, _changes(config))  # refuses what would be refused after the export
            source = preparation.export(source, task, config, resources.work.path)
        repository.lay_out_export(models, self.name, source.directory, source.manifest.task, _changes(config))
        return source.manifest.task

    def _lay_out_function(self, inference: Inference, resources: Resources) -> None:
        config = self._config
        batch_size = config.batch_size or DEFAULT_BATCH_SIZE
        if self._model is None:
            self._model = preparation.function_model(self._source, config.task)
        function = ServedFunction(inference, self._model)
        directory = resources.work.path / "function"
        directory.mkdir(mode=0o700)
        resources.host = FunctionHost(function, batch_size=batch_size, num_workers=config.num_workers or 1)
        resources.host.start(directory)
        settings = _function_settings(config, str(directory), takes_parameters=function.takes_parameters)
        text = render_function_config(batch_size, QUEUE_DELAY_US, settings)
        repository.lay_out_function(resources.work.path / "models", self.name, text)

    def _launcher(self) -> TritonLauncher:
        resources = self._resources
        launcher = resources.launcher if resources is not None else None
        if launcher is None:
            raise self._not_running()
        return launcher

    def _not_running(self) -> ToolError:
        return ToolError(f"the server of {self.name} is not running; start() it first")


def _check_native(source: Checkpoint | ExportedModel | LiveModel, config: ServerConfig) -> None:
    if isinstance(source, ExportedModel):
        config.refuse(("task", "dtype", "export", "tokenizer", "model_repository"), "because the model is exported already")
    elif isinstance(source, Checkpoint):
        config.refuse(("tokenizer",), "because the model's folder has it")
    elif not hasattr(source.model, "save_pretrained"):
        allowed = "a path, a hub id, or a model of transformers; anything else needs an inference function"
        raise ConfigError(f"model: got {shorten(repr(source.model))}, allowed: {allowed}")
    task = source.manifest.task if isinstance(source, ExportedModel) else config.task
    if task is not None:
        repository.engine_parameters(task, _changes(config))


def _changes(config: ServerConfig) -> repository.Changes:
    return repository.Changes(config.batch_size, config.num_workers, config.parameters)


def _check_function(source: Checkpoint | ExportedModel | LiveModel, config: ServerConfig) -> None:
    config.refuse(("dtype", "export", "tokenizer", "model_repository"), "because with an inference function nothing is exported")
    if isinstance(source, LiveModel):
        config.refuse(("task",), "because the inference function gets the model as it is")
    elif isinstance(source, ExportedModel) or source.is_gguf:
        raise ConfigError(
            f"model: got {source.name}, which no inference function can be given, "
            "allowed: a Hugging Face folder, a hub id, or any object that you have loaded"
        )
    _function_settings(config, "", takes_parameters=False)


def _function_settings(config: ServerConfig, directory: str, *, takes_parameters: bool) -> FunctionSettings:
    own = {"socket_directory": directory, "takes_parameters": "true" if takes_parameters else "false"}
    return FunctionSettings.parse({**config.parameters, **own})


def _own_servers() -> dict[str, str]:
    """The names of this process's running servers by HTTP URL."""
    running = [(server._served, server.name) for server in list(_RUNNING)]
    return {served.url: name for served, name in running if served is not None}


@contextlib.contextmanager
def _terminate_cleanly() -> Iterator[None]:
    """SIGTERM, where nobody handles it, becomes a SystemExit. Only the main thread may set handlers."""
    own = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if own:
        signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        if own:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(*_: object) -> NoReturn:
    raise SystemExit(_TERMINATED)
