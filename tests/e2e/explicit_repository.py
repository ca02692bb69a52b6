"""A model repository under a Triton in the mode "explicit": models come and go while it runs."""

from __future__ import annotations

import contextlib
import shutil

import httpx
import psutil

from tests.e2e.test_contract_wire import ask_http, question

BARE = 'backend: "fastserve"\n'
GREEDY = {"temperature": 0, "max_tokens": 5, "ignore_eos": True}


class Repository:
    """The models of a running Triton: adds, loads, unloads."""

    def __init__(self, launcher, folder, template):
        self.launcher, self._folder, self._template = launcher, folder, template

    def add(self, name, parameters=None, config=BARE):
        """A copy of the exported model with a config.pbtxt of its own; returns its folder."""
        folder = self._folder / name
        shutil.copytree(self._template, folder)
        self.configure(name, parameters, config)
        return folder

    def configure(self, name, parameters=None, config=BARE):
        lines = [
            f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}' for key, value in (parameters or {}).items()
        ]
        (self._folder / name / "config.pbtxt").write_text("\n".join([config, *lines, ""]))

    def http(self, method, path, body=None):
        return httpx.request(method, f"{self.launcher.http_url}/v2/{path}", json=body, trust_env=False, timeout=300, verify=False)

    def load(self, name):
        return self.http("POST", f"repository/models/{name}/load")

    def refuse(self, name, *parts):
        """It is not loaded and Triton says why, with all of ``parts``; nothing of it is left."""
        answer = self.load(name)
        assert answer.status_code == 400
        message = answer.json()["error"]
        assert message.startswith(f"load failed for model '{name}'") and all(part in message for part in parts), message
        state, reason = self.state(name)
        assert state == "UNAVAILABLE" and all(part in reason for part in parts)
        assert not self.is_ready(name) and self.stubs(name) == []

    def unload(self, name):
        assert self.http("POST", f"repository/models/{name}/unload").status_code == 200

    def state(self, name):
        (entry,) = [entry for entry in self.http("POST", "repository/index").json() if entry["name"] == name]
        return entry.get("state", ""), entry.get("reason", "")

    def is_ready(self, name):
        return self.http("GET", f"models/{name}/ready").status_code == 200

    def answer(self, name):
        (row,) = ask_http(self.launcher, name, question(GREEDY, text_input="hello", returns=("output_ids",)))
        return row["output_ids"]

    def stubs(self, name):
        """The processes that run a model."""
        found = []
        for child in psutil.Process(self.launcher.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                found += [child] if any(f"/{name}/1/" in argument for argument in child.cmdline()) else []
        return found
