"""The command-line arguments ``infer`` and ``chat`` share: where the server is, how to sample."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DEFAULT_REPOSITORY = Path("model_repository")
DEFAULT_URLS = {"grpc": "127.0.0.1:8001", "http": "http://127.0.0.1:8000"}
_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url", help=f"the server (default: {DEFAULT_URLS['grpc']}, with --protocol http {DEFAULT_URLS['http']})"
    )
    parser.add_argument("--protocol", choices=tuple(DEFAULT_URLS), default="grpc", help="default: grpc")


def add_sampling_arguments(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    group = parser.add_argument_group("sampling", "what is not given is the model's own default")
    group.add_argument(
        "--max-tokens", type=int, default=max_tokens, metavar="N", help=f"longest answer, tokens (default: {max_tokens})"
    )
    group.add_argument("--temperature", type=float, metavar="T", help="0: always the likeliest token")
    group.add_argument("--top-p", type=float, metavar="P", help="sample from the likeliest tokens that together reach P")
    group.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens")
    group.add_argument("--seed", type=int, help="the same seed gives the same answer")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before TEXT; may be given several times")


def server_url(arguments: argparse.Namespace) -> str:
    """The URL to connect to; a bare ``host:port`` gets the protocol that was asked for."""
    if arguments.url is None:
        return DEFAULT_URLS[arguments.protocol]
    url = str(arguments.url)
    return f"http://{url}" if arguments.protocol == "http" and "://" not in url else url


def sampling_parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """The given ones, by their names in the contract."""
    return {name: value for name in _SAMPLING if (value := getattr(arguments, name)) is not None}
