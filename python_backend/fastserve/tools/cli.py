"""``fastserve``: the root command. A subcommand's module is imported only when it is the one that was asked for."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

import fastserve
from fastserve.errors import FastServeError, ToolError
from fastserve.tools import console
from fastserve.tools.console import complain

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130  # argparse itself exits with 2

_EPILOG = """examples:
  fastserve doctor                                     is everything here that serving needs?
  fastserve doctor ./my-finetune                       can it be exported, what does it take?
  fastserve export ./my-finetune                       write model_repository/my-finetune
  fastserve serve                                      serve model_repository until Ctrl-C
  fastserve list                                       what was exported; --server: what is served
  fastserve infer my-finetune "Once upon a time"       one prompt, streamed
  fastserve chat my-finetune                           talk to it
  fastserve bench serve my-finetune --concurrency 16   how fast it is under load
  fastserve bench step my-finetune --profile           where an iteration of the engine goes
  fastserve evaluate my-ner test.conll                 how well it does on a dataset
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Subcommand:
    """``module`` offers ``add_arguments(parser)`` and ``run(arguments) -> exit code``; ``extra`` is what it needs installed.
    ``texts_anywhere``: options may also stand between the model's name and the texts."""

    module: str
    help: str
    extra: str
    texts_anywhere: bool = False


SUBCOMMANDS = {
    "export": Subcommand("fastserve.export.command", "turn a Hugging Face model into a model Triton can serve", "cpu,export"),
    "serve": Subcommand("fastserve.tools.serve", "run Triton on this machine, without Docker", "cpu,serve"),
    "list": Subcommand("fastserve.tools.list_models", "the models in a repository, or on a running server", "cpu"),
    "infer": Subcommand("fastserve.tools.infer", "send prompts to a running server", "client", texts_anywhere=True),
    "chat": Subcommand("fastserve.tools.chat", "talk to a model of a running server", "client"),
    "evaluate": Subcommand("fastserve.tools.evaluate", "measure a model, also against its source", "client,evaluate"),
    "bench": Subcommand("fastserve.tools.bench.command", "measure a model under load, or compare policies on a trace", "client"),
    "doctor": Subcommand("fastserve.tools.doctor", "check that this machine can serve, or a model can be served", "cpu"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; the process's exit code: 0, 1 (failed, said why), 2 (bad usage) or 130 (Ctrl-C)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    console.show_any_text()
    try:
        parsed = _parsed(given)
        if parsed is None:
            return 0
        code = int(parsed.run(parsed))
        sys.stdout.flush()  # what cannot be written shows here, not when Python ends
        return code
    except FastServeError as error:
        complain(str(error))
        return EXIT_FAILED
    except KeyboardInterrupt:
        complain("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        console.abandon_stdout()
        return EXIT_FAILED
    except OSError as error:  # a full disk, a missing right
        console.abandon_stdout()
        complain(str(error))
        return EXIT_FAILED


def _parsed(given: list[str]) -> argparse.Namespace | None:
    """The subcommand's arguments. None: no command, help was shown."""
    name = _asked_for(given)
    root, child = _parsers(name)
    if name is None or child is None:
        root.parse_args(given)
        root.print_help()
        return None
    place = given.index(name)
    root.parse_args(given[:place])
    parse = child.parse_intermixed_args if SUBCOMMANDS[name].texts_anywhere else child.parse_args
    return parse(given[place + 1 :])


def _asked_for(arguments: Sequence[str]) -> str | None:
    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    return name if name in SUBCOMMANDS else None


def _parsers(asked_for: str | None) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser | None]:
    """The parser of everything, in which subcommands know no arguments of their own, and that of the subcommand ``asked_for``."""
    asked: argparse.ArgumentParser | None = None
    parser = argparse.ArgumentParser(
        prog="fastserve",
        description="Serve fine-tuned Hugging Face models from Triton: export, serve, ask.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fastserve {fastserve.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", title="commands")
    for name, subcommand in SUBCOMMANDS.items():
        child = commands.add_parser(
            name, help=subcommand.help, description=subcommand.help, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == asked_for:
            module = _load(subcommand)
            module.add_arguments(child)
            child.set_defaults(run=module.run)
            asked = child
    return parser, asked


def _load(subcommand: Subcommand) -> ModuleType:
    try:
        return importlib.import_module(subcommand.module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("fastserve"):
            raise
        raise ToolError(f"{error.name} is not installed: pip install 'triton-fastserve[{subcommand.extra}]'") from None


if __name__ == "__main__":
    sys.exit(main())
