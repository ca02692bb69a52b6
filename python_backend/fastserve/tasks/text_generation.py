"""Text generation: from a client's request to tokens, and from tokens back to the client's text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastserve.core.events import TokenEvent
from fastserve.core.request import FinishReason, Request, SamplingParams
from fastserve.errors import FastServeError, InvalidRequest, ManifestError, RequestTooLong
from fastserve.manifest import ModelManifest
from fastserve.tasks.guided_decoding import guide_of
from fastserve.tasks.sampling_parameters import parse_sampling_parameters
from fastserve.text.detokenizer import IncrementalDetokenizer, StopStrings
from fastserve.text.guidance import Guidance
from fastserve.text.templates import ChatTemplate
from fastserve.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationInput:
    """What a client sent, typed but not yet understood."""

    text: str | None = None
    input_ids: Sequence[int] | None = None
    """Prompt tokens of a client with its own tokenizer; then ``text`` is absent."""
    stream: bool = False
    exclude_input_in_output: bool | None = None
    """None: the default, which is to exclude when streaming and to include when not."""
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    return_cumulative_logprob: bool = False
    return_logprobs: bool = False
    return_timing: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedGeneration:
    """A request for the engine and what is needed to turn its tokens into the answer."""

    request: Request
    stream: bool
    echo: str
    """Text put before the answer: the prompt, or nothing."""
    stop: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    num_answers: int
    """That are sent: the likeliest of those that are computed."""
    stream_interval: int | None
    """Tokens of an answer that a response of a stream waits for, after the first and until the last. None: as many as come while
    the server answers others."""
    arrived: float
    """Seconds on the engine's clock."""


class TextGeneration:
    """The text-generation task of one model. Thread-safe; used by the threads that receive requests."""

    def __init__(
        self,
        manifest: ModelManifest,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate | None,
        *,
        max_model_len: int,
        random_seed: Callable[[], int],
        default_deadline_ms: int = 0,
    ) -> None:
        """``max_model_len``: longest prompt + output in tokens. ``random_seed``: gives requests without a seed one of
        their own. Raises ManifestError for bad sampling defaults."""
        if manifest.tokenizer is None:
            raise ValueError("a text-generation model has a tokenizer")
        self.tokenizer = tokenizer
        self._vocab_size = manifest.model.vocab_size
        # An id beyond the vocabulary is never drawn (a tokenizer may have more ids than the model has rows).
        self._eos_token_ids = frozenset(id for id in manifest.tokenizer.eos_token_ids if id < manifest.model.vocab_size)
        self._guidance = Guidance(tokenizer, self._eos_token_ids, manifest.model.vocab_size)
        longest = tokenizer.longest_token_bytes
        self._max_prompt_bytes = max_model_len * longest if longest is not None else None
        try:
            self._defaults = parse_sampling_parameters(manifest.generation, {})
        except FastServeError as error:
            raise ManifestError(f"generation: {error}") from None
        self._chat_template = chat_template
        self._random_seed = random_seed
        self._default_deadline_ms = default_deadline_ms

    def prepare(self, item: GenerationInput, request_id: int, now: float) -> PreparedGeneration:
        """Raises InvalidRequest or UnsupportedFeature naming the field. ``now``: seconds on the engine's clock."""
        values = parse_sampling_parameters(item.parameters, self._defaults)
        if item.stream and item.exclude_input_in_output is False:
            raise InvalidRequest("exclude_input_in_output", False, "true when stream is true: a stream sends only what is new")
        if item.stream and values["num_beams"] > 1:
            raise InvalidRequest("num_beams", values["num_beams"], "1 when stream is true: beams are compared to the end")
        num_computed = values["best_of"] or values["n"]
        if item.stream and num_computed > values["n"]:
            allowed = f"n ({values['n']}) when stream is true: which answers are best is known at the end"
            raise InvalidRequest("best_of", num_computed, allowed)
        prompt, token_ids = self._prompt(item, values)
        if values["truncate_prompt_tokens"] is not None:
            token_ids = token_ids[-values["truncate_prompt_tokens"] :]
        deadline_ms = values["deadline_ms"] or self._default_deadline_ms
        request = Request(
            request_id=request_id,
            prompt_token_ids=token_ids,
            params=self._sampling_params(values, item),
            deadline=now + deadline_ms / 1000 if deadline_ms else None,
            return_timing=item.return_timing,
            priority=values["priority"],
            tenant=values["tenant"],
            cache_salt=values["cache_salt"],
        )
        excluded = item.exclude_input_in_output
        echo = prompt if not item.stream and not excluded and values["messages"] is None else ""
        if echo is None:  # the prompt came as ids
            echo = self.tokenizer.decode(token_ids)
        return PreparedGeneration(
            request,
            stream=item.stream,
            echo=echo,
            stop=values["stop"],
            include_stop=values["include_stop_str_in_output"],
            skip_special_tokens=values["skip_special_tokens"],
            num_answers=values["n"],
            stream_interval=values["stream_interval"],
            arrived=now,
        )

    def _prompt(self, item: GenerationInput, values: Mapping[str, Any]) -> tuple[str | None, tuple[int, ...]]:
        """The prompt's text (None when it came as ids) and tokens; exactly one of the three ways to give it."""
        messages, tools = values["messages"], values["tools"]
        given = [
            name for name, value in (("input_ids", item.input_ids), ("messages", messages), ("text_input", item.text)) if value
        ]
        if len(given) > 1:
            raise InvalidRequest(given[0], f"together with {given[1]}", f"either {given[0]} or {given[1]}, not both")
        if tools and messages is None:
            raise InvalidRequest(
                "tools", list(tools), "messages beside them: it is the chat template that shows tools to the model"
            )
        if messages is not None:
            if self._chat_template is None:
                raise InvalidRequest("messages", list(messages), "text_input instead: this model has no chat template")
            text = self._chat_template.render(messages, tools)
            return text, self._encode("messages", text, add_special_tokens=False)
        if item.input_ids is not None:
            return None, self._check_ids("input_ids", item.input_ids)
        if not item.text:
            raise InvalidRequest("text_input", item.text or "", "a prompt that is not empty (or input_ids, or messages)")
        return item.text, self._encode("text_input", item.text, add_special_tokens=True)

    def _encode(self, field: str, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Tokens of a prompt. A text that cannot fit is refused before the work of tokenising it."""
        size = len(text.encode())
        if self._max_prompt_bytes is not None and size > self._max_prompt_bytes:
            raise RequestTooLong(
                field, f"{size} bytes", f"at most {self._max_prompt_bytes}, the longest token for all of max_model_len"
            )
        return self._check_ids(field, self.tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def _check_ids(self, field: str, token_ids: Sequence[int]) -> tuple[int, ...]:
        if not len(token_ids):
            raise InvalidRequest(field, list(token_ids), "at least one token")
        for token_id in (min(token_ids), max(token_ids)):
            if not 0 <= token_id < self._vocab_size:
                raise InvalidRequest(field, token_id, f"token ids from 0 to {self._vocab_size - 1}")
        return tuple(token_ids)

    def _sampling_params(self, values: Mapping[str, Any], item: GenerationInput) -> SamplingParams:
        for token_id in values["stop_token_ids"]:
            if token_id >= self._vocab_size:
                raise InvalidRequest("stop_token_ids", token_id, f"token ids from 0 to {self._vocab_size - 1}")
        eos = frozenset() if values["ignore_eos"] else self._eos_token_ids
        guide = guide_of(values)
        names = (
            "num_beams",
            "length_penalty",
            "early_stopping",
            "max_tokens",
            "min_tokens",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
        )
        penalties = ("presence_penalty", "frequency_penalty", "repetition_penalty")
        return SamplingParams(
            **{name: values[name] for name in names + penalties},
            seed=values["seed"] if values["seed"] is not None else self._random_seed(),
            stop_token_ids=eos | frozenset(values["stop_token_ids"]),
            bad_words=self._bad_words(values["bad_words"]),
            n=values["best_of"] or values["n"],
            return_logprobs=item.return_cumulative_logprob or (values["best_of"] or 0) > values["n"],
            logprobs=values["logprobs"] if item.return_logprobs else None,
            prompt_logprobs=values["prompt_logprobs"],
            constraint=None if guide is None else self._guidance.compile(*guide),
        )

    def _bad_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The tokens of each word as it is written at the start of a text and after a space, as vLLM forbids them."""
        found: dict[tuple[int, ...], None] = {}
        for word in words:
            runs = [self.tokenizer.encode(space + word.lstrip(), add_special_tokens=False) for space in ("", " ")]
            if not word.strip() or not all(runs):
                raise InvalidRequest("bad_words", word, "words that the model's tokenizer has tokens for")
            found |= dict.fromkeys(run for run in runs if max(run) < self._vocab_size)  # others are never drawn
        return tuple(found)


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationDelta:
    """What one token added to an answer."""

    text: str
    cumulative_logprob: float
    finish_reason: FinishReason | None


class GenerationStream:
    """Turns the tokens of one request into text. Owned by the thread that answers."""

    def __init__(self, prepared: PreparedGeneration, tokenizer: Tokenizer) -> None:
        self._min_tokens = prepared.request.params.min_tokens
        self._stop_token_ids = prepared.request.params.stop_token_ids
        self._num_tokens = 0
        self._include_stop = prepared.include_stop
        self._detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=prepared.skip_special_tokens)
        self._stop = StopStrings(prepared.stop, include=prepared.include_stop)
        self._cumulative_logprob = 0.0

    def push(self, event: TokenEvent) -> GenerationDelta:
        """The text a token makes certain. When a stop string completes, the delta is the last one although the engine
        does not know it yet: the caller has to abort the request there."""
        self._num_tokens += 1
        self._cumulative_logprob += event.logprob or 0.0
        reason = event.finish_reason
        stopped_by_token = reason is FinishReason.STOP and event.token_id in self._stop_token_ids
        text = "" if stopped_by_token and not self._include_stop else self._detokenizer.push(event.token_id)
        if self._num_tokens > self._min_tokens:  # stop strings count from there on, as stop tokens do
            text = self._stop.push(text)
        if reason is not None and not self._stop.found:
            text += self._stop.push(self._detokenizer.flush())
            text += self._stop.flush()
        if self._stop.found:
            reason = FinishReason.STOP
        return GenerationDelta(text, self._cumulative_logprob, reason)
