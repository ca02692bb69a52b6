"""Import of ready-made ONNX encoders that take padded batches: what they are, what they compute, and how they may be run."""
