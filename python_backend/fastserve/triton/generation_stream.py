"""One open text-generation request: its tokens become text and responses."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fastserve.core.events import PromptLogprobs, TokenEvent
from fastserve.core.logprobs import PositionLogprobs
from fastserve.core.request import FinishReason
from fastserve.tasks.text_generation import GenerationStream, PreparedGeneration
from fastserve.tasks.token_logprobs import PromptLogprobsText, logprobs_json
from fastserve.text.tokenizer import Tokenizer
from fastserve.triton.protocol import Answer, Prompt, ReturnFlags, encode_answers
from fastserve.triton.request_timing import RequestTiming
from fastserve.triton.responder import Channel, ResponseStream, StreamEnd


class GenerationResponse(ResponseStream):
    """Its way back and its text so far."""

    def __init__(
        self,
        channel: Channel,
        prepared: PreparedGeneration,
        flags: ReturnFlags,
        tokenizer: Tokenizer,
        *,
        withdraw: Callable[[int, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``withdraw``: tells the engine to give up one answer of a request, by its index. ``clock``: the engine's."""
        super().__init__(channel, prepared.request.request_id)
        self._prepared = prepared
        self._flags = flags
        self._withdraw = withdraw
        self._answers = [UnsentAnswer(prepared, tokenizer) for _ in range(prepared.request.params.n)]
        self._sent = False  # whether a response has been
        self._timing = RequestTiming(prepared.arrived, clock)
        wants_prompt = prepared.request.params.prompt_logprobs is not None
        self._prompt_logprobs = PromptLogprobsText(tokenizer) if wants_prompt else None  # until they are sent

    def push(self, events: Sequence[TokenEvent | PromptLogprobs]) -> StreamEnd | None:
        """Sends in one response what the tokens add (streaming), or keeps it until the last, or until ``stream_interval`` of them
        are there. The engine is told of each answer that ends at a stop string while others go on."""
        self.started = True
        news = False
        for event in events:
            if isinstance(event, PromptLogprobs):
                self._take_prompt_logprobs(event)
                continue
            answer = self._answers[event.index]
            if answer.finish_reason is not None:
                continue  # it ended at a stop string, which the engine did not know yet
            news = True
            self._take(event, answer)
            if all(other.finish_reason is not None for other in self._answers):
                return self._end(event)
        if news and self._prepared.stream and self._is_due():
            self._send(self._answers, timing=None)
        return None

    def may_wait(self, event: TokenEvent | PromptLogprobs) -> bool:
        """A stream's tokens may, unless they are the first or the last of an answer, a stop string might end it, or the client
        has said how many it wants in a response."""
        prepared = self._prepared
        left_to_us = self.started and prepared.stream and prepared.stream_interval is None and not prepared.stop
        return left_to_us and isinstance(event, TokenEvent) and event.finish_reason is None

    def flush(self) -> None:
        """Sends what a stream has held back."""
        if self._prepared.stream and any(answer.num_unsent for answer in self._answers):
            self._send(self._answers, timing=None)

    def _is_due(self) -> bool:
        """The first tokens never wait; without a ``stream_interval`` none do that were pushed."""
        interval = self._prepared.stream_interval or 1
        return not self._sent or any(answer.num_unsent >= interval for answer in self._answers)

    def _take(self, event: TokenEvent, answer: UnsentAnswer) -> None:
        self._timing.push(event)
        if answer.push(event) and event.finish_reason is None and len(self._answers) > 1:
            self._withdraw(self.request_id, event.index)

    def _take_prompt_logprobs(self, event: PromptLogprobs) -> None:
        if self._prompt_logprobs is not None:
            self._prompt_logprobs.push(event.positions)

    def _end(self, event: TokenEvent) -> StreamEnd:
        """``event``: the one that ended the last answer."""
        best = self._answers
        if self._prepared.num_answers < len(best):
            best = sorted(best, key=lambda answer: -answer.cumulative_logprob)[: self._prepared.num_answers]
        self._send(best, timing=self._timing.as_json())
        reasons = [answer.finish_reason.value for answer in best if answer.finish_reason is not None]
        return StreamEnd(reasons[0], engine_knows=event.finish_reason is not None and event.num_open == 0)

    def _send(self, answers: Sequence[UnsentAnswer], *, timing: str | None) -> None:
        """``timing``: in the last response."""
        tensors = encode_answers([answer.take() for answer in answers], self._take_prompt(), self._flags, timing)
        self.channel.send(tensors, final=timing is not None)
        self._sent = True

    def _take_prompt(self) -> Prompt:
        text, self._prompt_logprobs = self._prompt_logprobs, None
        return Prompt(len(self._prepared.request.prompt_token_ids), None if text is None else text.json())


class UnsentAnswer:
    """One answer: what of it has not been sent yet."""

    def __init__(self, prepared: PreparedGeneration, tokenizer: Tokenizer) -> None:
        self._wants_logprobs = prepared.request.params.logprobs is not None
        self._tokenizer = tokenizer
        self._generation = GenerationStream(prepared, tokenizer)
        self._texts = [prepared.echo]
        self._token_ids: list[int] = []
        self._logprobs: list[PositionLogprobs] = []
        self.cumulative_logprob = 0.0
        self.finish_reason: FinishReason | None = None

    @property
    def num_unsent(self) -> int:
        return len(self._token_ids)

    def push(self, event: TokenEvent) -> bool:
        """Take a token; whether the answer ended with it."""
        delta = self._generation.push(event)
        self._texts.append(delta.text)
        self._token_ids.append(event.token_id)
        if event.logprobs is not None:
            self._logprobs.append(event.logprobs)
        self.cumulative_logprob = delta.cumulative_logprob
        self.finish_reason = delta.finish_reason
        return delta.finish_reason is not None

    def take(self) -> Answer:
        """What is new since the last time."""
        answer = Answer(
            "".join(self._texts),
            tuple(self._token_ids),
            self.cumulative_logprob,
            self.finish_reason,
            logprobs_json(self._logprobs, self._tokenizer) if self._wants_logprobs else "null",
        )
        for part in (self._texts, self._token_ids, self._logprobs):
            part.clear()
        return answer
