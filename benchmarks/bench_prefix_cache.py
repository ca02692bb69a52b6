"""What the prefix cache is worth: times to the first token of SmolLM2 through a real Triton, with the cache and without.

    python benchmarks/bench_prefix_cache.py [--rounds N] [--max-tokens N] [--output FILE]

Two conversations, one request at a time: a chat of eight turns, each of which brings back all before it, and eight questions
behind one system prompt of 1,000 tokens. The same version is served twice, with ``prefix_cache`` on and off; rounds alternate
between the two, and nothing of one round is found in another (``cache_salt``). Figures are medians over the rounds. Answers have
to be the same, token for token, and the blocks in use and free have to add up to the pool after every request, else it fails.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import onnxruntime
from report import RESULTS, processor, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fastserve
from fastserve.errors import FastServeError
from fastserve.manifest import ModelManifest
from fastserve.text.tokenizer import Tokenizer
from fastserve.tools.client import GenerateClient, GenerateRequest, connect
from fastserve.tools.demo_model import DemoModel, prepare
from fastserve.tools.launcher import LaunchOptions, TritonLauncher

MODES = ("on", "off")
POOL_BYTES = 512 << 20
SYSTEM_TOKENS = 1000
CHAT = (
    "I am planning three days in Lisbon with two children who like trains and boats. Where should we begin?",
    "It may rain on the second day. What can we do indoors that is not a museum of paintings?",
    "My younger child is five and gets tired after an hour of walking. How would you change the plan?",
    "We would like to eat fish near the water, early in the evening. What should I look for in a place?",
    "Is it worth going to Sintra by train, or does that take too much of a day with small children?",
    "Please suggest a small present that they could bring home for their grandmother, not made of plastic.",
    "What should we pack, if it is the second half of March and we only take one bag for all of us?",
    "Put everything together in a short list, one line for each morning and each afternoon.",
)
QUESTIONS = (
    "May I return shoes that I have worn once?",
    "How long does a refund take?",
    "Who pays for the parcel when a lamp arrives broken?",
    "Can I change my address after I have ordered?",
    "Do you deliver to an island?",
    "What happens if nobody is at home?",
    "Is there a shop where I can try a chair?",
    "How do I reach a person?",
)
RULES = (
    "Answer in at most three sentences and never promise what rule {n} does not allow.",
    "A customer who writes about order group {n} is asked for the number on the parcel before anything else is said.",
    "Goods of group {n} come back within {n} days of delivery, unworn, in the box they came in, with the bill.",
    "When a carrier of zone {n} is late, say so plainly, give the day that is expected now, and offer to cancel.",
)


@dataclasses.dataclass(frozen=True)
class Turn:
    """One request's figures. Tokens of its prompt, milliseconds."""

    prompt_tokens: int
    cached_tokens: int
    first_token_ms: float
    output_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class PoolUse:
    """Blocks on the metrics page, after a request."""

    used: int
    free: int
    cached: int


class Bench:
    """A server of both modes and a client. ``pools``: what the metrics page said, by mode."""

    def __init__(self, server: TritonLauncher, client: GenerateClient, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._server, self._client, self._tokenizer = server, client, tokenizer
        self._parameters = {"temperature": 0, "ignore_eos": True, "max_tokens": max_tokens}
        self.pools: dict[str, list[PoolUse]] = {mode: [] for mode in MODES}

    def chat(self, mode: str, salt: str) -> list[Turn]:
        """Eight turns; every one sends what was said so far."""
        messages: list[dict[str, str]] = []
        turns = []
        for words in CHAT:
            messages.append({"role": "user", "content": words})
            turn, text = self._ask(mode, salt, messages)
            turns.append(turn)
            messages.append({"role": "assistant", "content": text})
        return turns

    def questions(self, mode: str, salt: str) -> list[Turn]:
        """Eight questions behind the same system prompt."""
        system = {"role": "system", "content": self._system_prompt()}
        return [self._ask(mode, salt, [system, {"role": "user", "content": words}])[0] for words in QUESTIONS]

    def _system_prompt(self) -> str:
        rules = ""
        number = 1
        while len(self._tokenizer.encode(rules)) < SYSTEM_TOKENS:
            rules += f"{number}. {RULES[number % len(RULES)].format(n=number)} "
            number += 1
        return rules.strip()

    def _ask(self, mode: str, salt: str, messages: Sequence[dict[str, str]]) -> tuple[Turn, str]:
        returns = ("num_input_tokens", "output_ids", "timing")
        parameters = self._parameters | {"cache_salt": salt}
        request = GenerateRequest(mode, messages=list(messages), parameters=parameters, returns=returns)
        sent = time.monotonic()
        with self._client.stream(request) as stream:
            responses = list(stream)
        self.pools[mode].append(self._pool(mode))
        timing = json.loads(responses[-1].tensors["timing"][0])
        ids = tuple(token for response in responses for token in response.output_ids)
        first_token_ms = (responses[0].arrival - sent) * 1000
        turn = Turn(responses[0].num_input_tokens or 0, timing["cached_tokens"], first_token_ms, ids)
        return turn, "".join(response.text for response in responses)

    def _pool(self, mode: str) -> PoolUse:
        """When nothing runs any more, and the page, which is written number by number, says so."""
        use = self._read_pool(mode)
        while True:
            before, use = use, self._read_pool(mode)
            if use == before and use.used == 0:
                return use

    def _read_pool(self, mode: str) -> PoolUse:
        page = httpx.get(self._server.metrics_url, trust_env=False).text
        found = re.findall(rf'^fastserve:kv_blocks_(used|free|cached){{.*model="{mode}".*}} (\S+)$', page, re.MULTILINE)
        return PoolUse(**{name: int(float(value)) for name, value in found})


def serve(model: DemoModel, folder: Path) -> Path:
    """A repository in which ``model`` stands once for each mode, under the mode's name."""
    for mode in MODES:
        (folder / mode).mkdir(parents=True)
        (folder / mode / "1").symlink_to((model.repository / model.name / "1").resolve())
        config = (model.repository / model.name / "config.pbtxt").read_text(encoding="utf-8")
        for key, value in {"prefix_cache": mode, "kv_cache_bytes": POOL_BYTES}.items():
            config += f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n'
        (folder / mode / "config.pbtxt").write_text(config, encoding="utf-8")
    return folder


def medians(rounds: Sequence[Sequence[Turn]]) -> list[Turn]:
    """Of each turn's time over the rounds; tokens are the same in each."""
    return [
        dataclasses.replace(turns[0], first_token_ms=statistics.median(turn.first_token_ms for turn in turns))
        for turns in zip(*rounds, strict=True)
    ]


def table_of(title: str, on: Sequence[Turn], off: Sequence[Turn]) -> Table:
    table = Table(title=title)
    for column in ("request", "prompt tokens", "from the cache", "TTFT ms on", "TTFT ms off", "on / off"):
        table.add_column(column, justify="right")
    for number, (cached, plain) in enumerate(zip(on, off, strict=True), 1):
        ratio = cached.first_token_ms / plain.first_token_ms
        times = (f"{cached.first_token_ms:.0f}", f"{plain.first_token_ms:.0f}", f"{ratio:.2f}")
        table.add_row(str(number), f"{cached.prompt_tokens:,}", f"{cached.cached_tokens:,}", *times)
    share = sum(turn.cached_tokens for turn in on) / sum(turn.prompt_tokens for turn in on)
    total = sum(turn.first_token_ms for turn in on) / sum(turn.first_token_ms for turn in off)
    table.caption = f"{share:.0%} of the prompts' tokens came from the cache; all times to the first token together: {total:.2f}"
    return table


def check(name: str, rounds: dict[str, list[list[Turn]]], pools: dict[str, list[PoolUse]]) -> None:
    """Exits when an answer differs, or when blocks do not add up."""
    answers = {tuple(turn.output_ids for turn in turns) for turns_of in rounds.values() for turns in turns_of}
    if len(answers) != 1:
        sys.exit(f"{name}: the answers with and without the cache differ")
    for mode, uses in pools.items():
        if len({use.used + use.free for use in uses}) != 1 or any(use.cached > use.free for use in uses):
            sys.exit(f"{name}, prefix_cache {mode}: blocks in use and free do not add up to the pool")


def measure(bench: Bench, num_rounds: int, console: Console) -> Iterator[tuple[str, dict[str, list[list[Turn]]]]]:
    """By scenario and mode: the turns of each round."""
    scenarios: tuple[tuple[str, Callable[[str, str], list[Turn]]], ...] = (
        ("A chat of eight turns", bench.chat),
        (f"Eight questions behind a system prompt of {SYSTEM_TOKENS:,} tokens", bench.questions),
    )
    for name, ask in scenarios:
        rounds: dict[str, list[list[Turn]]] = {mode: [] for mode in MODES}
        for number in track(range(num_rounds), name, console=console):
            for mode in MODES:
                rounds[mode].append(ask(mode, f"round {number}"))
        check(name, rounds, bench.pools)
        yield name, rounds


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=24, help="of each answer (default: 24)")
    parser.add_argument("--output", type=Path, default=RESULTS / "prefix_cache.json")
    return parser.parse_args()


def main() -> int:
    options, console = parse(), Console()
    load_before = os.getloadavg()[0]
    found: dict[str, Any] = {}
    try:
        model = prepare(None, Path(".demo"))
        version = model.repository / model.name / "1"
        manifest = ModelManifest.load(version)
        assert manifest.tokenizer is not None
        tokenizer = Tokenizer(version, manifest.tokenizer)
        with tempfile.TemporaryDirectory() as temporary:
            repository = serve(model, Path(temporary))
            launch = LaunchOptions(ready_timeout_s=180.0)
            with TritonLauncher(repository, launch) as server, connect(server.grpc_url) as client:
                bench = Bench(server, client, tokenizer, options.max_tokens)
                for name, rounds in measure(bench, options.rounds, console):
                    on, off = (medians(rounds[mode]) for mode in MODES)
                    console.print(table_of(name, on, off))
                    found[name] = {
                        mode: [[dataclasses.asdict(turn) for turn in turns] for turns in rounds[mode]] for mode in MODES
                    }
    except FastServeError as error:
        sys.exit(str(error))
    pool = bench.pools["on"][0]
    most = max(use.cached for use in bench.pools["on"])
    console.print(f"answers equal; the pool has {pool.used + pool.free} blocks, at most {most} of them were cached")
    versions = {"fastserve": fastserve.__version__, "onnxruntime": onnxruntime.__version__}
    circumstances = {"processor": processor(), "load_average_before": load_before, "versions": versions, "model": model.name}
    write_json(circumstances | {"max_tokens": options.max_tokens, "results": found}, options.output, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
