"""Outputs of models with a batch dimension."""

from __future__ import annotations

import numpy as np

from fastserve.errors import RequestCancelled
from fastserve.triton.batched_channel import BatchedChannel
from tests.doubles import RecordingChannel


def test_every_output_is_the_row_of_a_batch_of_one():
    channel = RecordingChannel()
    BatchedChannel(channel).send({"ids": np.array([5, 6]), "none": np.empty(0)}, final=True)
    ((tensors, final),) = channel.responses
    assert final and {name: tensor.shape for name, tensor in tensors.items()} == {"ids": (1, 2), "none": (1, 0)}
    assert tensors["ids"].tolist() == [[5, 6]]


def test_errors_and_cancellations_pass_through():
    channel = RecordingChannel()
    batched = BatchedChannel(channel)
    batched.fail(error := RequestCancelled())
    assert channel.errors == [error] and not batched.is_cancelled()
    channel.cancelled = True
    assert batched.is_cancelled()
