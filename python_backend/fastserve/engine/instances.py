"""What the instances of one model on one machine have to divide among them, and what they can share."""

from __future__ import annotations

import dataclasses

from fastserve.config import EncoderConfig, EngineConfig
from fastserve.worker.session import count_cores


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    """One of the instances of a model on this machine. ``device_number``: which GPU, of a model for one."""

    num_instances: int = 1
    device_number: int = 0


def num_threads_of(config: EngineConfig | EncoderConfig, num_instances: int) -> int:
    """Threads of one instance's runs: what the configuration says, else its part of the cores, because threads that fight
    for cores make every instance slower."""
    return config.num_threads or max(1, count_cores() // num_instances)


def shares_weights(config: EngineConfig | EncoderConfig, num_instances: int) -> bool:
    """Whether weights come from the machine's shared copy. A single instance has nobody to share with, and the shared copy
    costs disk space."""
    return config.share_weights == "on" or (config.share_weights == "auto" and num_instances > 1)
