"""What encoder models declare to Triton, and completing a configuration from it."""

from __future__ import annotations

import pytest

from fastserve.config import ENCODER_TASKS, GENERATION_TASK
from fastserve.errors import ConfigError
from fastserve.triton.encoder_io import DEFAULT_MAX_BATCH_SIZE, encoder_inputs, encoder_outputs
from fastserve.triton.services import SERVICES, contract_of, string_parameters, task_of
from fastserve.triton.tensor_io import TensorIO, complete_config


class Configuration:
    """Keeps the contract of Triton's ``ModelConfig`` as far as it is used."""

    def __init__(self, **given):
        self.values = {"max_batch_size": 0, "input": [], "output": [], "parameters": {}} | given

    def as_dict(self):
        return self.values

    def add_input(self, entry):
        self.values["input"].append(entry)

    def add_output(self, entry):
        self.values["output"].append(entry)

    def set_max_batch_size(self, size):
        if self.values["max_batch_size"] > size:
            raise ValueError("configuration specified max_batch_size")
        self.values["max_batch_size"] = size

    def set_dynamic_batching(self):
        self.values.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, policy):
        self.values["model_transaction_policy"] = policy


def completed(task=None, **given):
    parameters = {} if task is None else {"task": {"string_value": task}}
    configuration = Configuration(parameters=parameters, **given)
    complete_config(configuration, contract_of(string_parameters(configuration.as_dict())))
    return configuration.values


def test_every_task_has_inputs_outputs_and_a_service():
    assert set(SERVICES) == {GENERATION_TASK, *ENCODER_TASKS, "python-function"}
    for task in ENCODER_TASKS:
        assert all(isinstance(spec, TensorIO) for spec in (*encoder_inputs(task), *encoder_outputs(task)))
        assert sum(not spec.optional for spec in encoder_inputs(task)) >= 1
        assert not any(spec.optional for spec in encoder_outputs(task))
        assert ("result" in {spec.name for spec in encoder_outputs(task)}) == (task != "feature-extraction")


@pytest.mark.parametrize("task", ENCODER_TASKS)
def test_an_encoders_bare_configuration_becomes_batched_and_whole(task):
    values = completed(task)
    assert [entry["name"] for entry in values["input"]] == [spec.name for spec in encoder_inputs(task)]
    assert [entry["name"] for entry in values["output"]] == [spec.name for spec in encoder_outputs(task)]
    assert values["max_batch_size"] == DEFAULT_MAX_BATCH_SIZE
    assert values["dynamic_batching"] == {}
    assert "model_transaction_policy" not in values


def test_what_the_user_chose_stays():
    batching = {"max_queue_delay_microseconds": 500}
    values = completed("fill-mask", max_batch_size=8, dynamic_batching=batching)
    assert (values["max_batch_size"], values["dynamic_batching"]) == (8, batching)


def test_without_a_task_a_model_generates_text_decoupled_and_unbatched():
    values = completed()
    assert (values["max_batch_size"], values["model_transaction_policy"]) == (0, {"decoupled": True})
    assert "dynamic_batching" not in values
    assert values == completed(GENERATION_TASK) | {"parameters": {}}


def test_a_batch_dimension_of_a_generating_model_is_the_users_choice():
    values = completed(max_batch_size=8)
    assert (values["max_batch_size"], values["dynamic_batching"]) == (8, {})
    assert values["model_transaction_policy"] == {"decoupled": True}


def test_an_encoder_cannot_be_decoupled():
    with pytest.raises(ConfigError, match="model_transaction_policy: got decoupled: true"):
        completed("reranking", model_transaction_policy={"decoupled": True})


def test_an_input_that_is_not_the_tasks_is_refused():
    with pytest.raises(ConfigError, match=r"input text_pair: unknown in config.pbtxt, allowed: text_input"):
        completed("fill-mask", input=[{"name": "text_pair", "data_type": "TYPE_STRING", "dims": [1]}])


def test_an_unknown_task_is_refused_with_all_that_are_known():
    with pytest.raises(ConfigError, match=r"task: got 'ner' in config.pbtxt, allowed: text-generation, text-classification, "):
        task_of({"task": "ner"})
