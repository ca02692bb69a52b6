"""One open request to an encoder: the outputs of its sequences become the only response."""

from __future__ import annotations

import dataclasses
import functools
import logging
import queue
from collections.abc import Sequence
from typing import Any

from fastserve.core.events import Failed
from fastserve.errors import FastServeError, ResponderFailed
from fastserve.tasks.encoding_task import FloatArray, PreparedEncoding, Tensors
from fastserve.triton.encoder_protocol import select_outputs
from fastserve.triton.long_texts import LongTexts
from fastserve.triton.request_reader import Received
from fastserve.triton.responder import ResponseStream, StreamEnd

logger = logging.getLogger(__name__)

SUCCESS = StreamEnd("success")


@dataclasses.dataclass(frozen=True, slots=True)
class AnswerMade:
    """Event: the answer to a long request."""

    request_id: int
    tensors: Tensors


class EncodingResponse(ResponseStream):
    """Its way back and what makes its answer."""

    def __init__(self, received: Received, prepared: PreparedEncoding) -> None:
        super().__init__(received.channel, prepared.request.request_id)
        self._output_names = received.output_names
        self._prepared = prepared

    def push(self, events: Sequence[Any]) -> StreamEnd | None:
        """Makes the answer and sends it. ``events``: one Encoded."""
        return self._send(self._prepared.answer(events[0].outputs))

    def _send(self, tensors: Tensors) -> StreamEnd:
        self.channel.send(select_outputs(tensors, self._output_names), final=True)
        return SUCCESS


class LongEncodingResponse(EncodingResponse):
    """The same for a long text: its answer is made by the thread for long texts (L) and then comes back as an event."""

    def __init__(
        self, received: Received, prepared: PreparedEncoding, long_texts: LongTexts, outbox: queue.SimpleQueue[Any]
    ) -> None:
        """``outbox``: the responder's."""
        super().__init__(received, prepared)
        self._long_texts = long_texts
        self._outbox = outbox

    def push(self, events: Sequence[Any]) -> StreamEnd | None:
        """Hands outputs over, sends an answer. ``events``: one Encoded or one AnswerMade."""
        (event,) = events
        if isinstance(event, AnswerMade):
            return self._send(event.tensors)
        self._long_texts.do(functools.partial(self._make, event.outputs))
        return None

    def _make(self, outputs: Sequence[FloatArray]) -> None:
        """Called by L."""
        event: AnswerMade | Failed
        try:
            event = AnswerMade(self.request_id, self._prepared.answer(outputs))
        except FastServeError as error:
            event = Failed(self.request_id, error)
        except Exception as error:  # a bug in making its answer
            logger.exception("request %d could not be answered", self.request_id)
            event = Failed(self.request_id, ResponderFailed(f"the answer could not be made ({type(error).__name__}: {error})"))
        self._outbox.put([event])
