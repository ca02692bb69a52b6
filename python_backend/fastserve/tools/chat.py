"""``fastserve chat``: a conversation with a model of a running server, in a terminal or through a pipe."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from fastserve.errors import FastServeError, ToolError
from fastserve.tools import console
from fastserve.tools.answer import Answer, generate
from fastserve.tools.client import GenerateClient, GenerateRequest, ServerUnreachable, connect
from fastserve.tools.request_arguments import add_sampling_arguments, add_server_arguments, sampling_parameters, server_url

_HELP = "/reset forgets the conversation, /system TEXT sets the system message, /exit ends; Ctrl-C stops an answer"
_EPILOG = f"""in the conversation:
  {_HELP}

examples:
  fastserve chat my-model
  fastserve chat my-model --system "Answer in one sentence." --temperature 0.7
  echo "Who wrote Faust?" | fastserve chat my-model
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("model", help="name of the model on the server; it needs a chat template")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    add_server_arguments(parser)
    add_sampling_arguments(parser, max_tokens=512)


def run(arguments: argparse.Namespace) -> int:
    """Until /exit or the end of the input. From a pipe, a turn that fails ends the conversation with exit code 1."""
    interactive = sys.stdin.isatty()
    with connect(server_url(arguments)) as client:
        chat = Conversation(client, arguments.model, sampling_parameters(arguments), arguments.system)
        if interactive:
            import readline  # noqa: F401  (gives input() history and editing)

            console.stderr().print(_HELP, style="dim")
        while (line := _next_line(interactive)) is not None:
            if line.startswith("/"):
                if line == "/exit":
                    break
                console.stderr().print(chat.command(line), style="dim")
            elif line and not _turn(chat, line, interactive):
                return 1
    return 0


class Conversation:
    """The messages so far, and one streaming request a turn."""

    def __init__(self, client: GenerateClient, model: str, parameters: dict[str, Any], system: str | None = None) -> None:
        self._client = client
        self._model = model
        self._parameters = parameters
        self._system = system
        self._turns: list[dict[str, str]] = []

    @property
    def messages(self) -> list[dict[str, str]]:
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        return system + self._turns

    def command(self, line: str) -> str:
        """Carry out ``/reset`` or ``/system TEXT``; what to tell the user."""
        name, _, argument = line.partition(" ")
        if name == "/reset":
            self._turns.clear()
            return "forgotten"
        if name == "/system":
            self._system = argument.strip() or None
            return "system message set" if self._system else "no system message"
        return f"unknown command {name}; {_HELP}"

    def say(self, text: str) -> Answer:
        """One turn, written to stdout as it comes. Whatever was answered is remembered, also when Ctrl-C ends it early
        (KeyboardInterrupt is raised then); a turn without any answer is not.
        """
        self._turns.append({"role": "user", "content": text})
        pieces: list[str] = []

        def show(piece: str) -> None:
            pieces.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()

        try:
            return generate(self._client, GenerateRequest(self._model, messages=self.messages, parameters=self._parameters), show)
        finally:
            if any(pieces):
                self._turns.append({"role": "assistant", "content": "".join(pieces)})
                print()
            else:
                self._turns.pop()


def _next_line(interactive: bool) -> str | None:
    """The next input without surrounding blanks; None at its end. Raises :class:`ToolError` when it is no text."""
    while True:
        try:
            line = input("> ") if interactive else sys.stdin.readline()
        except EOFError:
            print()
            return None
        except UnicodeDecodeError as error:
            raise ToolError(f"the input is not {error.encoding} text ({error.reason})") from None
        except KeyboardInterrupt:
            if not interactive:
                raise
            console.stderr().print("\n/exit or Ctrl-D ends the conversation", style="dim")
            continue
        return None if not interactive and line == "" else line.strip()


def _turn(chat: Conversation, line: str, interactive: bool) -> bool:
    """Whether the conversation can go on."""
    try:
        answer = chat.say(line)
    except KeyboardInterrupt:
        if not interactive:
            raise
        console.stderr().print("(stopped)", style="dim")
    except FastServeError as error:
        console.complain(str(error))
        return interactive and not isinstance(error, ServerUnreachable)
    else:
        console.stderr().print(answer.speed(), style="dim")
    return True
