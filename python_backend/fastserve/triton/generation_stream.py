"""One open text-generation request: its tokens become text and responses."""

from __future__ import annotations

from collections.abc import Sequence

from fastserve.core.events import TokenEvent
from fastserve.tasks.text_generation import GenerationStream, PreparedGeneration
from fastserve.text.tokenizer import Tokenizer
from fastserve.triton.protocol import Answer, ReturnFlags, encode_answer
from fastserve.triton.responder import Channel, ResponseStream, StreamEnd


class GenerationResponse(ResponseStream):
    """Its way back and its text so far."""

    def __init__(self, channel: Channel, prepared: PreparedGeneration, flags: ReturnFlags, tokenizer: Tokenizer) -> None:
        super().__init__(channel, prepared.request.request_id)
        self._prepared = prepared
        self._flags = flags
        self._generation = GenerationStream(prepared, tokenizer)
        self._texts = [prepared.echo]
        self._token_ids: list[int] = []

    def push(self, events: Sequence[TokenEvent]) -> StreamEnd | None:
        """Sends in one response what the tokens add (streaming), or keeps it until the last."""
        self.started = True
        for event in events:
            delta = self._generation.push(event)
            self._texts.append(delta.text)
            self._token_ids.append(event.token_id)
            if delta.finish_reason is not None:
                break
        if delta.finish_reason is None and not self._prepared.stream:
            return None
        answer = Answer(
            "".join(self._texts),
            tuple(self._token_ids),
            delta.cumulative_logprob,
            len(self._prepared.request.prompt_token_ids),
            delta.finish_reason,
        )
        self._texts.clear()
        self._token_ids.clear()
        self.channel.send(encode_answer(answer, self._flags), final=answer.finish_reason is not None)
        if answer.finish_reason is None:
            return None
        return StreamEnd(answer.finish_reason.value, engine_knows=event.finish_reason is not None)
