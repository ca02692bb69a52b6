"""What people run today: the same weights, padded, inside a plain model of Triton's python backend behind dynamic batching.

Tokenising and answering are FastServe's own code, so that only padding and scheduling differ. ``parameters`` of config.pbtxt:
``package``: folder that holds the package fastserve; ``export``: the exported version folder whose manifest and tokenizer
are used; ``graph``: the padded ONNX graph; ``num_threads``.
"""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Answers one batch of requests at a time, as Triton's dynamic batcher hands them over."""

    def initialize(self, args):
        parameters = {key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()}
        sys.path.insert(0, parameters["package"])
        import onnxruntime as ort

        from fastserve.manifest import ModelManifest
        from fastserve.tasks.encoding_task import EncodingInput, make_task
        from fastserve.text.tokenizer import Tokenizer

        directory = Path(parameters["export"])
        manifest = ModelManifest.load(directory)
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(parameters["num_threads"])
        self._session = ort.InferenceSession(parameters["graph"], options, providers=["CPUExecutionProvider"])
        self._takes_types = "token_type_ids" in {value.name for value in self._session.get_inputs()}
        self._task = make_task(manifest, Tokenizer(directory, manifest.tokenizer))
        self._input = EncodingInput
        counter = pb_utils.MetricFamily.COUNTER
        self._families = [
            pb_utils.MetricFamily(name=f"bench:{name}_total", description=name, kind=counter)
            for name in ("tokens", "padded_tokens")
        ]
        self._tokens, self._padded_tokens = (family.Metric(labels={"model": args["model_name"]}) for family in self._families)

    def execute(self, requests):
        prepared = [self._prepare(request) for request in requests]
        sequences = [sequence for item in prepared for sequence in item.request.sequences]
        rows = iter(self._run(sequences))
        responses = []
        for item in prepared:
            answer = item.answer([next(rows) for _ in item.request.sequences])
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in answer.items()]))
        return responses

    def _prepare(self, request):
        texts = [text.decode() for text in pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy().reshape(-1)]
        return self._task.prepare(self._input({"text_input": texts}, {}, {}), 0, 0.0)

    def _run(self, sequences):
        """The rows of each sequence, from one padded run."""
        lengths = [len(sequence.token_ids) for sequence in sequences]
        input_ids = np.zeros((len(sequences), max(lengths)), np.int64)
        mask, types = np.zeros_like(input_ids), np.zeros_like(input_ids)
        for row, sequence in enumerate(sequences):
            input_ids[row, : lengths[row]] = sequence.token_ids
            mask[row, : lengths[row]] = 1
            types[row, : len(sequence.token_type_ids)] = sequence.token_type_ids
        self._tokens.increment(sum(lengths))
        self._padded_tokens.increment(input_ids.size)
        feeds = {"input_ids": input_ids, "attention_mask": mask} | ({"token_type_ids": types} if self._takes_types else {})
        (logits,) = self._session.run(None, feeds)
        return [logits[row, :length] for row, length in enumerate(lengths)]
