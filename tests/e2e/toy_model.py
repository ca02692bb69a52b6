"""A Triton Python model for tests of the launcher and the client: it sends the prompt back, word by word.

A prompt that starts with ``error`` is answered with INVALID_ARG; at ``die`` the process kills itself. Environment:
TOY_LOG_BYTES writes that much to the log while loading; TOY_STOP_S makes unloading take that long.
"""

import os
import signal
import time

import numpy as np
import triton_python_backend_utils as pb_utils


def _tensor(name, kind, *, dims=(1,), optional=False):
    return {"name": name, "data_type": kind, "dims": list(dims), **({"optional": True} if optional else {})}


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.set_max_batch_size(0)
        config.set_model_transaction_policy({"decoupled": True})
        config.add_input(_tensor("text_input", "TYPE_STRING"))
        config.add_input(_tensor("stream", "TYPE_BOOL", optional=True))
        config.add_output(_tensor("text_output", "TYPE_STRING", dims=(-1,)))
        return config

    def initialize(self, args):
        line = "toy " + 95 * "x" + "\n"
        print(line * (int(os.environ.get("TOY_LOG_BYTES", "0")) // len(line)) + "toy is ready", flush=True)

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy().reshape(-1)[0].decode()
            if text == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if text.startswith("error"):
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG)))
            else:
                for word in text.split():
                    sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("text_output", np.array([word.encode()], object))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self):
        time.sleep(float(os.environ.get("TOY_STOP_S", "0")))
