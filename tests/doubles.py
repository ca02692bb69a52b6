"""Stand-ins for what the layer under test leans on. First-class code: they keep the contracts of what they replace."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.core.admission import QueueLimits
from fastserve.core.attention_windows import EVERYTHING, AttentionWindows
from fastserve.core.block_pool import BlockPool
from fastserve.core.cost_model import CostModel
from fastserve.core.encoder_scheduler import EncoderScheduler
from fastserve.core.encoding import EncodingRequest, TokenSequence
from fastserve.core.events import Aborted, Encoded, Event, Failed, PromptLogprobs, TokenEvent, is_ending
from fastserve.core.policy import make_policy
from fastserve.core.prefix_cache import PrefixCache
from fastserve.core.request import Request, SamplingParams
from fastserve.core.scheduler import Scheduler
from fastserve.core.step_limits import StepLimits
from fastserve.core.step_work import StepCosts
from fastserve.core.swapper import Swapper, Tier
from fastserve.engine.encoder_engine import EncoderEngine
from fastserve.engine.engine import Engine
from fastserve.engine.stats import EngineStats
from fastserve.errors import FastServeError
from fastserve.manifest import CacheSpec, LayerCacheSpec, ModelManifest, ModelSpec, TokenizerSpec
from fastserve.worker.kv_cache import KVCache
from tests.byte_level_json import byte_level_json
from tests.hashing_runner import HashingRunner
from tests.late_copier import LateCopier

SPECIAL_TOKENS = {256: "<s>", 257: "</s>"}


class FakeClock:
    """A clock that moves only when told."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class TickingClock(FakeClock):
    """To look at it takes a millisecond, so that iterations take some time."""

    def __call__(self) -> float:
        self.advance(0.001)
        return self.now


def make_request(
    request_id: int,
    prompt: Sequence[int],
    *,
    deadline: float | None = None,
    priority: int = 0,
    tenant: str = "",
    **params: Any,
) -> Request:
    """A greedy request unless ``params`` say otherwise."""
    sampling = SamplingParams(**({"temperature": 0.0} | params))
    return Request(request_id, tuple(prompt), sampling, deadline, priority=priority, tenant=tenant)


def make_engine(
    runner: Any = None,
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    max_num_seqs: int = 8,
    max_batched_tokens: int = 16,
    max_model_len: int = 128,
    max_queue_size: int = 1000,
    max_queue_size_per_tenant: int = 0,
    policy: str = "fcfs",
    inner: str = "gittins",
    prefix_cache: str = "on",
    clock: Callable[[], float] | None = None,
    num_slots: Mapping[Tier, int] | None = None,
    proactive: bool = True,
    chance: random.Random | None = None,
    pair_s: float = 0.0,
    windows: AttentionWindows = EVERYTHING,
) -> Engine:
    """A real engine over a :class:`HashingRunner` (or ``runner``). ``inner``: order inside a class of policy ``priority``.
    ``pair_s``: what the cost model begins with, see ``StepCosts``; ``windows``: what it counts.
    ``num_slots``: of the tiers below the pool; their copier is a :class:`LateCopier`, which ``chance`` drives."""
    costs = StepCosts(0.01, 0.002, pair_s=pair_s)
    cost_model = CostModel(costs, max_num_seqs=max_num_seqs, max_batched_tokens=max_batched_tokens, windows=windows)
    pool = BlockPool(num_blocks, block_size)
    scheduler = Scheduler(
        StepLimits(max_num_seqs, max_batched_tokens, cost_model.pair_tokens, windows),
        PrefixCache(pool, mode=prefix_cache),
        make_policy(policy, cost_model, inner=inner),
        max_model_len=max_model_len,
        queue=QueueLimits(max_queue_size, max_queue_size_per_tenant),
        swapper=Swapper(pool, num_slots or {}, proactive=proactive),
    )
    kv_cache = KVCache(CacheSpec((LayerCacheSpec(1, 1),)), num_blocks, block_size, "fp32")
    copier = LateCopier(kv_cache, num_slots or {}, chance or random.Random(0))
    clock = clock or FakeClock()
    return Engine(scheduler, runner or HashingRunner(), kv_cache, clock=clock, cost_model=cost_model, copier=copier)


@dataclasses.dataclass
class Outcome:
    """What became of one request."""

    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    """What each event says of probabilities."""
    endings: list[Any] = dataclasses.field(default_factory=list)
    """A FinishReason, Encoded, an error or "aborted"; exactly one when all is well."""
    prompt_logprobs: list[Any] = dataclasses.field(default_factory=list)
    others: dict[int, Outcome] = dataclasses.field(default_factory=dict)
    """The request's other answers, by index; an ending that is not theirs alone is in ``endings`` of the first."""
    num_endings: int = 0
    """How often the request ended."""

    def answer(self, index: int) -> Outcome:
        return self if index == 0 else self.others.setdefault(index, Outcome())


def collect(events: Sequence[Event], outcomes: dict[int, Outcome] | None = None) -> dict[int, Outcome]:
    """Sort events by request."""
    outcomes = {} if outcomes is None else outcomes
    for event in events:
        outcome = outcomes.setdefault(event.request_id, Outcome())
        assert outcome.num_endings == 0, f"{event} after the end of its request"
        outcome.num_endings += is_ending(event)
        if isinstance(event, TokenEvent):
            outcome = outcome.answer(event.index)
            outcome.token_ids.append(event.token_id)
            outcome.logprobs.append((event.logprob, event.logprobs))
            if event.finish_reason is not None:
                outcome.endings.append(event.finish_reason)
        elif isinstance(event, PromptLogprobs):
            assert not outcome.token_ids, "logprobs of a prompt after the first token"
            outcome.prompt_logprobs += event.positions
        elif isinstance(event, Encoded):
            outcome.endings.append(event)
        elif isinstance(event, Failed):
            outcome.endings.append(event.error)
        elif isinstance(event, Aborted):
            outcome.endings.append("aborted")
    return outcomes


def run_to_end(engine: Any, requests: Sequence[Any]) -> dict[int, Outcome]:
    """Submit everything, step until nothing is left."""
    events: list[Event] = []
    for request in requests:
        events += engine.submit(request)
    while engine.has_work:
        events += engine.step()
    return collect(events)


class HashingEncoder:
    """An "encoder" whose output for a sequence, [2], says how long it is and is a hash of its token ids."""

    def __init__(self) -> None:
        self.runs: list[tuple[TokenSequence, ...]] = []
        self.failures: list[Exception] = []
        """Raised by the next runs, one each."""

    def run(self, sequences: Sequence[TokenSequence]) -> list[npt.NDArray[np.float32]]:
        self.runs.append(tuple(sequences))
        if self.failures:
            raise self.failures.pop(0)
        return [np.array(hash_sequence(sequence), np.float32) for sequence in sequences]


def hash_sequence(sequence: TokenSequence) -> tuple[int, int]:
    """The output of :class:`HashingEncoder`."""
    return len(sequence.token_ids), hash(sequence.token_ids) % 65_521


def make_encoding(request_id: int, *lengths: int, deadline: float | None = None) -> EncodingRequest:
    """A request of one sequence for each length; no two requests or sequences have the same tokens."""
    sequences = (TokenSequence((request_id, index, *range(2, length))[:length]) for index, length in enumerate(lengths))
    return EncodingRequest(request_id, tuple(sequences), deadline)


def make_encoder_engine(
    runner: Any = None,
    *,
    max_num_seqs: int = 8,
    max_batched_tokens: int = 64,
    max_queue_size: int = 1000,
    padded: bool = False,
    clock: Callable[[], float] | None = None,
) -> EncoderEngine:
    """A real engine over a :class:`HashingEncoder` (or ``runner``)."""
    limits = StepLimits(max_num_seqs, max_batched_tokens)
    scheduler = EncoderScheduler(limits, max_queue_size=max_queue_size, padded=padded)
    return EncoderEngine(scheduler, runner or HashingEncoder(), clock=clock or FakeClock())


class ByteTokenizer:
    """One token is one byte of UTF-8; ids 256.. are special tokens. Keeps the contract of ``text.tokenizer.Tokenizer``."""

    def __init__(self) -> None:
        self.size = 258
        self.longest_token_bytes = 4

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        return ((256,) if add_special_tokens else ()) + tuple(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        out = b""
        for token_id in token_ids:
            if token_id < 256:
                out += bytes([token_id])
            elif not skip_special_tokens:
                out += SPECIAL_TOKENS[token_id].encode()
        return out.decode("utf-8", errors="replace")

    def to_json(self) -> str:
        return byte_level_json(SPECIAL_TOKENS)


def make_manifest(**changes: Any) -> ModelManifest:
    """The manifest of a tiny decoder with the tokens of :class:`ByteTokenizer`; nothing of it is on disk."""
    values: dict[str, Any] = {
        "task": "text-generation",
        "model": ModelSpec("tiny", "made in a test", "llama", "fp32", 1000, 258, 128),
        "graphs": {},
        "tokenizer": TokenizerSpec("tokenizer.json", eos_token_ids=(257,), bos_token_id=256),
        "cache": CacheSpec((LayerCacheSpec(1, 1),)),
        "position_offset": 0,
        "generation": {},
        "files": {},
        "proof": {},
        "fastserve_version": "0",
    }
    return ModelManifest(**(values | changes))


class RecordingChannel:
    """A client's end: remembers what it was sent. ``cancelled`` and ``broken`` are for the test to set."""

    def __init__(self) -> None:
        self.responses: list[tuple[dict[str, Any], bool]] = []
        self.errors: list[FastServeError] = []
        self.cancelled = False
        self.broken = False

    @property
    def endings(self) -> int:
        """How often the client was told that this was all."""
        return len(self.errors) + sum(final for _, final in self.responses)

    def send(self, tensors: Mapping[str, npt.NDArray[Any]], *, final: bool) -> None:
        if self.broken:
            raise RuntimeError("the client is gone")
        self.responses.append((dict(tensors), final))

    def fail(self, error: FastServeError) -> None:
        if self.broken:
            raise RuntimeError("the client is gone")
        self.errors.append(error)

    def is_cancelled(self) -> bool:
        return self.cancelled

    def text(self) -> str:
        return "".join(tensors["text_output"][0].decode() for tensors, _ in self.responses)


class RecordingMetrics:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.snapshots: list[EngineStats] = []
        self.endings: list[str] = []

    def update(self, stats: EngineStats) -> Iterator[None]:
        self.snapshots.append(stats)
        yield

    def count_endings(self, ending: str, count: int) -> None:
        self.endings += [ending] * count
