"""Tensors as config.pbtxt knows them, and completing a model's configuration from its contract. Nothing of Triton is imported
here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fastserve.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True)
class TensorIO:
    """A model input or output as config.pbtxt knows it. ``data_type`` includes the TYPE_ prefix."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    """Without the batch dimension that Triton puts in front when max_batch_size is not 0."""
    optional: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Contract:
    """What every model of a task declares to Triton."""

    inputs: tuple[TensorIO, ...]
    outputs: tuple[TensorIO, ...]
    max_batch_size: int = 0
    """Rows of one request, unless config.pbtxt says otherwise; then Triton's dynamic batcher stands in front. 0: there is no
    batch dimension, and no batcher, unless config.pbtxt says otherwise."""
    decoupled: bool = False
    """Whether a request may get other than one response."""


def complete_config(config: Any, contract: Contract) -> None:
    """Fill in what config.pbtxt leaves out. ``config``: Triton's ``ModelConfig``, changed in place.

    Raises ConfigError when config.pbtxt contradicts the contract.
    """
    given = config.as_dict()
    for entry in missing_entries(given["input"], contract.inputs, kind="input"):
        config.add_input(entry)
    for entry in missing_entries(given["output"], contract.outputs, kind="output"):
        config.add_output(entry)
    if given["max_batch_size"] == 0:
        config.set_max_batch_size(contract.max_batch_size)
    if lacks_batcher(given, contract):
        config.set_dynamic_batching()
    if not _is_decoupled(given, contract) and contract.decoupled:
        config.set_model_transaction_policy({"decoupled": True})


def gaps(given: Mapping[str, Any], contract: Contract) -> list[str]:
    """What of a model configuration is missing that :func:`complete_config` would add and that nothing can be served without, in
    the words of config.pbtxt.

    ``given``: the configuration as JSON has it. Raises ConfigError when an entry contradicts the contract.
    """
    found = [
        f'{kind} "{entry["name"]}"'
        for kind, specs in (("input", contract.inputs), ("output", contract.outputs))
        for entry in missing_entries(given.get(kind, ()), specs, kind=kind)
    ]
    size = int(given.get("max_batch_size", 0))
    if contract.max_batch_size and not size:
        found.append(f"max_batch_size: {contract.max_batch_size}")
    if not _is_decoupled(given, contract) and contract.decoupled:
        found.append("model_transaction_policy { decoupled: true }")
    return found


def lacks_batcher(given: Mapping[str, Any], contract: Contract) -> bool:
    """Whether :func:`complete_config` would put Triton's dynamic batcher in front of a model with a batch dimension. It is served
    without one too: requests come to the engine one by one, which batches them anyway."""
    return bool(int(given.get("max_batch_size", 0)) or contract.max_batch_size) and "dynamic_batching" not in given


def _is_decoupled(given: Mapping[str, Any], contract: Contract) -> bool:
    """Whether config.pbtxt says so. Raises ConfigError when the task is not."""
    decoupled = bool(given.get("model_transaction_policy", {}).get("decoupled", False))
    if decoupled and not contract.decoupled:
        raise ConfigError("model_transaction_policy: got decoupled: true in config.pbtxt, allowed: false for this task")
    return decoupled


def missing_entries(given: Sequence[Mapping[str, Any]], contract: Sequence[TensorIO], *, kind: str) -> list[dict[str, Any]]:
    """What a model configuration has to be completed with, as its entries.

    ``given``: its inputs or outputs (``kind``). Raises ConfigError for an entry that is not the contract's.
    """
    specs = {spec.name: spec for spec in contract}
    for entry in given:
        spec = specs.get(entry["name"])
        if spec is None:
            raise ConfigError(f"{kind} {entry['name']}: unknown in config.pbtxt, allowed: {', '.join(specs)}")
        declared = entry["data_type"], tuple(int(size) for size in entry["dims"])
        if declared != (spec.data_type, spec.dims):
            shown = f"{declared[0]} {list(declared[1])}"
            raise ConfigError(f"{kind} {spec.name}: got {shown} in config.pbtxt, allowed: {spec.data_type} {list(spec.dims)}")
        if spec.optional and not entry.get("optional", False):
            raise ConfigError(f"{kind} {spec.name}: got optional: false in config.pbtxt, allowed: optional: true")
    present = {entry["name"] for entry in given}
    optional = {True: {"optional": True}, False: {}}
    return [
        {"name": spec.name, "data_type": spec.data_type, "dims": list(spec.dims)} | optional[spec.optional]
        for spec in contract
        if spec.name not in present
    ]
